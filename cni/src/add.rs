//! `azure-vnet` ADD: an address, a link, the datapath. In an order that never shows the network a pod that the
//! datapath does not know, and that can be taken back from every point.

use std::{cell::Cell, fs::File, io, net::IpAddr, os::fd::AsFd};

use causeway::{
    attachments::{self, PATIENCE},
    datapath::{Expedited, Pod},
    endpoints::{self, Endpoints, Key, NewEndpoint, UplinkRecord},
    links::{self, Netlink, PodLink, PodNetwork},
};
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    Call,
    address::{Applicant, Ground},
    attachment, del,
    error::CniError,
    netns, orphans, repeat,
    result::CniResult,
    summary::Summary,
    sweep,
    undo::{Safety, Undo},
    version::Version,
};

/// Connects the pod and prints the result. If no address is free, those whose pods are gone are collected first.
pub(crate) fn run(
    call: &Call<'_>,
    summary: &mut Summary,
    print: impl Fn(&Value) -> io::Result<()>,
) -> Result<(), CniError> {
    orphans::making_room(call.root, || attempt(call, summary, &print))
}

fn attempt(
    call: &Call<'_>,
    summary: &mut Summary,
    print: &impl Fn(&Value) -> io::Result<()>,
) -> Result<(), CniError> {
    let Call {
        root,
        invocation,
        conf,
        ..
    } = call;
    let netns = netns::open(&invocation.netns, invocation.own_netns_allowed)?;
    let key = attachment::key(invocation, conf);
    let _alone = attachment::lock(root, &key)?;
    let noted = endpoints::Reading::of(root)?;
    let mut netlink = Netlink::for_a_moment()?;
    if let Some(result) = repeat::answer(call, noted.state(), &key, &netns, &mut netlink)? {
        summary.ip = list(result.ips.iter().map(|ip| ip.address));
        let result = result.after(conf.prev_result.as_ref()).to_json(conf.version)?;
        return print(&result).map_err(|error| CniError::unprinted(&error));
    }
    let host_if = attachment::host_interface(invocation, conf);

    let mut undo = Undo::default();
    let applicant = Applicant {
        key: &key,
        host_if: &host_if,
        state: noted.state(),
    };
    let ground = match Ground::obtain(call, &applicant, &mut netlink, &mut undo) {
        Ok(ground) => ground,
        Err(error) => return Err(undo.because_of(error)),
    };
    summary.ip = list(ground.addresses().into_iter());
    let pod = Connection {
        call,
        key,
        netns,
        ground,
        host_if,
        noted: Cell::new(Some(noted)),
    };
    let mut undo = undo.within();
    let done = pod
        .make(&mut undo)
        .and_then(|result| print(&result).map_err(|error| CniError::unprinted(&error)));
    match done {
        Ok(()) => {
            undo.keep();
            sweep::after_add(&pod.ground.datapath);
            Ok(())
        }
        Err(error) => Err(undo.because_of(error)),
    }
}

fn list(addresses: impl Iterator<Item = IpNet>) -> String {
    del::list(&addresses.map(|net| net.addr()).collect::<Vec<_>>())
}

/// A pod that has an address and is to get its link.
struct Connection<'a> {
    call: &'a Call<'a>,
    key: Key,
    netns: File,
    ground: Ground,
    host_if: String,
    /// The endpoints that were there.
    noted: Cell<Option<endpoints::Reading>>,
}

impl Connection<'_> {
    /// Notes the endpoint, keeps its ports, makes the link, tells the datapath. Returns the result to print.
    fn make<'a>(&'a self, undo: &mut Undo<'a>) -> Result<Value, CniError> {
        let Self { call, ground, .. } = self;
        let datapath = &ground.datapath;
        let mac = call.conf.mac.map_or_else(links::random_mac, Ok)?;
        // Noted before it is made: whatever is made of it from here on is found by a DEL.
        undo.push("forgetting the endpoint", Safety::Always, || {
            attachments::forget_endpoint(call.root, &self.key, Some(datapath))
        });
        self.note_endpoint(mac)?;
        datapath.reserve_ports(&call.conf.host_ports)?;
        let network = PodNetwork {
            addresses: ground.addresses(),
            if_name: call.invocation.interface.clone(),
            host_if: self.host_if.clone(),
            mtu: self.mtu(),
            mac,
            polls: datapath.has_xdp()?,
        };
        // Told while the link is still down: no packet of the pod finds the datapath unprepared.
        let admit = |link: &PodLink| -> Result<(), CniError> {
            undo.push("removing the pod from the datapath", Safety::Always, move || {
                let addresses = ground.addresses().into_iter().map(|net| net.addr());
                let removed = addresses.map(|address| datapath.remove_pod(address).map(drop));
                removed.fold(Ok(()), Result::and)
            });
            Ok(datapath.add_pod(&self.pod(link, network.polls))?)
        };
        let expedited = Expedited::begin(call.conf.expedite);
        let link = links::connect_pod(self.netns.as_fd(), &network, admit)?;
        drop(expedited);
        undo.push("removing the interface", Safety::Always, || {
            links::disconnect_pod(&self.host_if).map(drop)
        });
        let result = self.result(&link).after(call.conf.prev_result.as_ref());
        result.to_json(call.conf.version)
    }

    fn pod(&self, link: &PodLink, takes_frames: bool) -> Pod {
        Pod {
            addresses: self.ground.served,
            ifindex: link.host_ifindex,
            host_if: self.host_if.clone(),
            mac: link.mac,
            host_mac: link.host_mac,
            mtu: u16::try_from(self.mtu()).unwrap_or(u16::MAX),
            // The limits are those of a queueing discipline, which sees what takes the stack.
            stack_only: self.call.conf.has_limits,
            takes_frames,
        }
    }

    /// What is asked for, unless the uplink's is less: nothing larger could leave the node.
    fn mtu(&self) -> u32 {
        let uplink = self.ground.uplink.mtu;
        self.call.conf.mtu.map_or(uplink, |asked| asked.min(uplink))
    }

    fn result(&self, link: &PodLink) -> CniResult {
        let ends = [link.mac, link.host_mac];
        CniResult::of_pod(self.call, &self.host_if, ends, self.mtu(), self.ground.told())
    }

    fn note_endpoint(&self, mac: [u8; 6]) -> Result<(), CniError> {
        let Self { call, ground, .. } = self;
        let is_given = call.conf.delegates();
        let ipam_result = is_given.then(|| ground.told().to_json(Version::NOTED));
        let ipam_result = ipam_result.transpose()?;
        let gateways: Vec<IpAddr> = [ground.gateway(true), ground.gateway(false)]
            .into_iter()
            .flatten()
            .collect();
        let dns = call.conf.dns.as_ref().unwrap_or(&ground.dns);
        let servers = dns["nameservers"].as_array().into_iter().flatten();
        let nameservers: Vec<String> = servers
            .filter_map(|server| Some(server.as_str()?.to_owned()))
            .collect();
        let mut endpoints = Endpoints::open_as(call.root, PATIENCE, self.noted.take())?;
        endpoints.insert(&NewEndpoint {
            key: &self.key,
            uplink: &UplinkRecord {
                name: &ground.uplink.name,
                mac: ground.uplink.mac,
            },
            host_if: &self.host_if,
            mac,
            addresses: &ground.addresses(),
            gateways: &gateways,
            nameservers: &nameservers,
            netns: &call.invocation.netns,
            pod: call.invocation.pod(),
            namespace: call.invocation.namespace(),
            host_ports: &call.conf.host_ports,
            ipam_result: ipam_result.as_ref(),
        })?;
        Ok(endpoints.save()?)
    }
}
