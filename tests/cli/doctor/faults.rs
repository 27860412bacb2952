//! The faults, in the order of their codes.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::atomic::Ordering};

use anyhow::{Context, Result};
use aya::{
    EbpfLoader,
    programs::{
        LinkOrder, SchedClassifier, Xdp, XdpMode,
        links::FdLink,
        tc::{TcAttachOptions, TcAttachType},
    },
};
use causeway_common::{
    maps::{IfaceEntry, POD_QUOTA},
    reason::Reason,
};
use causeway_tests::{
    fabric::{GATEWAY, NODE},
    node::Datapath,
    stock,
};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;

use super::deeds::{ENDPOINTS, endpoints, forget_endpoint, nft, speak, use_flows};
use super::maps::{count, fill_flows, hash, remove_flows, reserve_every_port};
use crate::scene::Scene;

/// Something that goes wrong on a node, and the code by which it must be found.
pub(super) struct Fault {
    pub(super) code: &'static str,
    pub(super) what: &'static str,
    pub(super) datapath: Datapath,
    pub(super) addresses: u8,
    pub(super) make: fn(&Scene) -> Result<()>,
}

const fn fault(code: &'static str, what: &'static str, make: fn(&Scene) -> Result<()>) -> Fault {
    Fault {
        code,
        what,
        datapath: Datapath::Causeway,
        addresses: 20,
        make,
    }
}

/// Codes of faults that cannot be made here, and why.
pub(super) const NOT_MADE: [(&str, &str); 1] = [(
    "CWY001",
    "the kernel of the test can run the programs: nothing of this would run otherwise",
)];

const LEASES: &str = "/var/run/azure-vnet-ipam.json";
const POOL: &str = "10.240.0.0/16";

pub(super) const FAULTS: &[Fault] = &[
    fault("CWY002", "a kernel without BTF", |scene| {
        scene.without_btf.store(true, Ordering::Relaxed);
        Ok(())
    }),
    fault("CWY003", "the bpffs unmounted", |scene| {
        Ok(unmount(
            scene.rig.node.root.join("/sys/fs/bpf"),
            UnmountFlags::DETACH,
        )?)
    }),
    fault("CWY004", "forwarding turned off", |scene| {
        scene.rig.node.ns.sysctl("net/ipv4/ip_forward", "0")
    }),
    fault("CWY005", "a strict source check", |scene| {
        scene.rig.node.ns.sysctl("net/ipv4/conf/eth0/rp_filter", "1")
    }),
    fault("CWY010", "the pins removed", |scene| {
        Ok(fs::remove_dir_all(
            scene.rig.node.root.join("/sys/fs/bpf/causeway"),
        )?)
    }),
    fault("CWY011", "a map for everybody", |scene| {
        Ok(fs::set_permissions(
            scene.pin("maps/cwy_flows"),
            fs::Permissions::from_mode(0o666),
        )?)
    }),
    fault("CWY012", "a tree of another schema", |scene| {
        Ok(fs::create_dir(
            scene.rig.node.root.join("/sys/fs/bpf/causeway/v99"),
        )?)
    }),
    fault("CWY013", "a half-made tree", |scene| {
        Ok(fs::create_dir(
            scene.rig.node.root.join("/sys/fs/bpf/causeway/staging"),
        )?)
    }),
    fault("CWY014", "a map's pin removed", |scene| {
        Ok(fs::remove_file(scene.pin("maps/cwy_frags"))?)
    }),
    fault("CWY015", "a map of another layout", |scene| {
        let pin = scene.pin("maps/cwy_frags");
        fs::remove_file(&pin)?;
        let path = pin.display().to_string();
        let words = format!("map create {path} type lru_hash key 4 value 4 entries 8 name cwy_frags");
        let words: Vec<&str> = words.split_whitespace().collect();
        scene.rig.node.ns.output("bpftool", &words).map(drop)
    }),
    fault("CWY015", "a program in a map's place", |scene| {
        fs::remove_file(scene.pin("maps/cwy_frags"))?;
        Ok(fs::hard_link(
            scene.pin("progs/cwy_to_pod"),
            scene.pin("maps/cwy_frags"),
        )?)
    }),
    fault("CWY016", "a program's pin removed", |scene| {
        Ok(fs::remove_file(scene.pin("progs/cwy_to_pod"))?)
    }),
    fault("CWY020", "the uplink deleted", |scene| {
        scene.rig.node.ns.ip("link del eth0")
    }),
    fault("CWY021", "another address on the uplink", |scene| {
        scene.rig.node.ns.ip(&format!(
            "addr del {NODE}/16 dev eth0\naddr add 10.240.9.9/16 dev eth0\nroute add default via {GATEWAY}"
        ))
    }),
    fault("CWY022", "another MTU on the uplink", |scene| {
        scene.rig.node.ns.ip("link set eth0 mtu 1400")
    }),
    fault("CWY023", "the ingress hook of the uplink emptied", |scene| {
        Ok(fs::remove_file(scene.pin("links/uplink_ingress"))?)
    }),
    fault("CWY024", "the egress hook of the uplink emptied", |scene| {
        Ok(fs::remove_file(scene.pin("links/uplink_egress"))?)
    }),
    Fault {
        datapath: Datapath::CausewayXdp,
        ..fault("CWY025", "XDP detached", |scene| {
            Ok(fs::remove_file(scene.pin("links/uplink_xdp"))?)
        })
    },
    fault("CWY026", "a program of others first, tcx", |scene| {
        let attach = || {
            let mut program = SchedClassifier::from_pin(scene.pin("progs/cwy_to_pod"))?;
            let name = scene.rig.node.root.join("/sys/fs/bpf/other");
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            let link = program.attach_with_options("eth0", TcAttachType::Egress, first)?;
            let link: FdLink = program.take_link(link)?.try_into()?;
            link.pin(name)?;
            Ok(())
        };
        scene.rig.node.ns.run(attach)?
    }),
    Fault {
        datapath: Datapath::CausewayClsact,
        ..fault("CWY026", "a filter of others first, clsact", |scene| {
            let pin = scene.pin("progs/cwy_to_pod").display().to_string();
            let words = format!("filter add dev eth0 ingress prio 10 bpf da object-pinned {pin}");
            let words: Vec<&str> = words.split_whitespace().collect();
            scene.rig.node.ns.output("tc", &words).map(drop)
        })
    },
    fault("CWY026", "a program of others in the driver, XDP", |scene| {
        let attach = || {
            let mut object = EbpfLoader::new()
                .map_max_entries("cwy_flows", 64)
                .load(causeway::datapath::OBJECT)?;
            let program = object.program_mut("cwy_xdp_uplink").context("no such program")?;
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
            let link = program.attach("eth0", XdpMode::Default)?;
            let link: FdLink = program.take_link(link)?.try_into()?;
            link.pin(scene.rig.node.root.join("/sys/fs/bpf/other"))?;
            Ok(())
        };
        scene.rig.node.ns.run(attach)?
    }),
    fault("CWY027", "the default route elsewhere", |scene| {
        scene.rig.node.ns.ip(
            "link add vpn type veth peer name vpn-peer\nlink set vpn up\nlink set vpn-peer up\n\
             route replace default dev vpn",
        )
    }),
    fault("CWY028", "the uplink down", |scene| {
        scene.rig.node.ns.ip("link set eth0 down")
    }),
    fault("CWY029", "a router behind another network card", |scene| {
        scene.rig.node.ns.ip(
            "link add site type veth peer name site-peer\nlink set site up\nlink set site-peer up\n\
             addr add 198.19.0.4/16 dev site\nroute add 198.18.0.0/16 via 198.19.0.1 dev site",
        )
    }),
    fault("CWY030", "a pod's link deleted", |scene| {
        scene.rig.node.ns.ip(&format!("link del {}", scene.host_if()?))
    }),
    fault("CWY031", "a pod's link down", |scene| {
        scene
            .rig
            .node
            .ns
            .ip(&format!("link set {} down", scene.host_if()?))
    }),
    fault("CWY032", "the ingress hook of a pod emptied", |scene| {
        Ok(fs::remove_file(
            scene.pin(&format!("links/{}_ingress", scene.host_if()?)),
        )?)
    }),
    fault("CWY033", "the egress hook of a pod emptied", |scene| {
        Ok(fs::remove_file(
            scene.pin(&format!("links/{}_egress", scene.host_if()?)),
        )?)
    }),
    fault("CWY034", "a pod forgotten by the programs", |scene| {
        let addr = scene.pods[0].addr.octets();
        Ok(hash::<[u8; 4], [u8; 24]>(scene, "cwy_pods")?.remove(&addr)?)
    }),
    fault("CWY035", "a link forgotten by the programs", |scene| {
        let index = scene.rig.node.ns.ifindex(&scene.host_if()?)?;
        Ok(hash::<u32, IfaceEntry<[u8; 4]>>(scene, "cwy_ifaces")?.remove(&index)?)
    }),
    fault("CWY035", "a link taken for another pod's", |scene| {
        let index = scene.rig.node.ns.ifindex(&scene.host_if()?)?;
        let mut ifaces = hash::<u32, IfaceEntry<[u8; 4]>>(scene, "cwy_ifaces")?;
        let other = IfaceEntry {
            addr: scene.pods[1].addr.octets(),
            ..ifaces.get(&index, 0)?
        };
        Ok(ifaces.insert(index, other, 0)?)
    }),
    fault("CWY036", "a pod forgotten by the state file", forget_endpoint),
    fault("CWY037", "a pod's route deleted", |scene| {
        scene.rig.node.ns.ip(&format!("route del {}", scene.pods[0].addr))
    }),
    fault("CWY038", "a pod's route elsewhere", |scene| {
        let other = scene.rig.node.host_interface(&scene.pods[1])?;
        let addr = scene.pods[0].addr;
        scene
            .rig
            .node
            .ns
            .ip(&format!("route replace {addr} dev {other} scope link"))
    }),
    fault("CWY039", "a pod's neighbour entry deleted", |scene| {
        let (addr, host_if) = (scene.pods[0].addr, scene.host_if()?);
        scene.rig.node.ns.ip(&format!("neigh del {addr} dev {host_if}"))
    }),
    fault("CWY039", "a neighbour entry with another MAC", |scene| {
        let (addr, host_if) = (scene.pods[0].addr, scene.host_if()?);
        scene.rig.node.ns.ip(&format!(
            "neigh replace {addr} lladdr 02:00:00:00:00:99 dev {host_if} nud permanent"
        ))
    }),
    fault("CWY039", "a neighbour entry that may age", |scene| {
        let (addr, host_if) = (scene.pods[0].addr, scene.host_if()?);
        let mac = scene.pods[0].macs()?[0]
            .map(|byte| format!("{byte:02x}"))
            .join(":");
        scene.rig.node.ns.ip(&format!(
            "neigh replace {addr} lladdr {mac} dev {host_if} nud reachable"
        ))
    }),
    fault("CWY040", "the endpoint state cut off", |scene| {
        scene.rig.node.root.write(ENDPOINTS, "{\"Network\":")
    }),
    fault("CWY041", "the address state cut off", |scene| {
        scene.rig.node.root.write(LEASES, "{\"IPAM\":")
    }),
    fault("CWY042", "an address given twice", |scene| {
        scene.edit(ENDPOINTS, |state| {
            let endpoints = endpoints(state)?;
            let mut twin = endpoints.values().next()?.clone();
            twin["ContainerID"] = json!("another");
            endpoints.insert("another-eth0".to_owned(), twin);
            Some(())
        })
    }),
    fault("CWY043", "a pod's address free by the address state", |scene| {
        let addr = scene.pods[0].addr.to_string();
        scene.edit(LEASES, |state| {
            let space = &mut state["IPAM"]["AddressSpaces"]["local"];
            let lease = space["Pools"][POOL]["Addresses"].get_mut(&addr)?;
            (lease["InUse"], lease["ID"]) = (json!(false), json!(""));
            Some(())
        })
    }),
    fault("CWY044", "a pod gone without a trace but its lease", |scene| {
        scene.rig.node.ns.ip(&format!("link del {}", scene.host_if()?))?;
        forget_endpoint(scene)
    }),
    Fault {
        addresses: 3,
        ..fault("CWY045", "no address left", |_| Ok(()))
    },
    fault("CWY046", "the state of an earlier boot", |scene| {
        scene.edit(ENDPOINTS, |state| {
            *state["Network"].get_mut("BootID")? = json!("00000000-0000-0000-0000-000000000000");
            Some(())
        })
    }),
    fault("CWY050", "a table that is nearly full", |scene| {
        fill_flows(scene, 0.92).map(drop)
    }),
    fault("CWY051", "a pod that has nearly all its flows", |scene| {
        use_flows(scene, POD_QUOTA.cast_signed() - 1)
    }),
    fault("CWY052", "no port left", |scene| {
        reserve_every_port(scene)?;
        speak(scene)
    }),
    fault("CWY053", "a table that was full", |scene| {
        let keys = fill_flows(scene, 1.1)?;
        speak(scene)?;
        remove_flows(scene, &keys)
    }),
    fault("CWY054", "a pod that had all its flows", |scene| {
        use_flows(scene, POD_QUOTA.cast_signed())?;
        speak(scene)?;
        use_flows(scene, 0)
    }),
    fault("CWY055", "a rewrite refused", |scene| {
        count(scene, Reason::RewriteFailed)
    }),
    fault("CWY056", "a tuple taken twice", |scene| {
        count(scene, Reason::SnatCollision)
    }),
    fault("CWY057", "a packet of a link that nobody knows", |scene| {
        let index = scene.rig.node.ns.ifindex(&scene.host_if()?)?;
        let mut ifaces = hash::<u32, IfaceEntry<[u8; 4]>>(scene, "cwy_ifaces")?;
        let entry = ifaces.get(&index, 0)?;
        ifaces.remove(&index)?;
        speak(scene)?;
        Ok(ifaces.insert(index, entry, 0)?)
    }),
    fault("CWY058", "a pod with an address of its own choice", |scene| {
        let pod = &scene.pods[0].ns;
        pod.ip("addr add 10.240.0.200/32 dev eth0\nroute replace default via 169.254.1.1 dev eth0 onlink src 10.240.0.200")?;
        speak(scene)
    }),
    fault("CWY060", "no network configuration", |scene| {
        Ok(fs::remove_file(
            scene.rig.node.root.join("/etc/cni/net.d/10-azure.conflist"),
        )?)
    }),
    fault("CWY061", "a network configuration cut off", |scene| {
        scene
            .rig
            .node
            .root
            .write("/etc/cni/net.d/10-azure.conflist", "{\"plugins\": [")
    }),
    fault("CWY062", "another plug-in first", |scene| {
        let other = json!({ "cniVersion": "0.3.1", "name": "other", "type": "bridge" });
        scene
            .rig
            .node
            .root
            .write("/etc/cni/net.d/05-other.conf", &other.to_string())
    }),
    fault("CWY063", "a plug-in removed", |scene| {
        Ok(fs::remove_file(
            scene.rig.node.root.join("/opt/cni/bin/azure-vnet-ipam"),
        )?)
    }),
    fault("CWY064", "a plug-in of another version", |scene| {
        let path = scene.rig.node.root.join("/opt/cni/bin/azure-vnet");
        fs::remove_file(&path)?;
        fs::write(
            &path,
            "#!/bin/sh\necho CNI azure-vnet plugin, Causeway 0.0.9 >&2\n",
        )?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
    }),
    fault("CWY070", "the rule that is replaced still there", |scene| {
        let words: Vec<&str> = stock::MASQUERADE.split_whitespace().collect();
        scene.rig.node.ns.output("iptables", &words).map(drop)
    }),
    fault("CWY070", "a masquerading chain of nftables", |scene| {
        nft(scene, "add table ip home")?;
        nft(
            scene,
            "add chain ip home out { type nat hook postrouting priority 100 ; }",
        )?;
        nft(scene, "add rule ip home out ip daddr != 10.0.0.0/8 masquerade")
    }),
    fault("CWY071", "a FORWARD chain that drops", |scene| {
        let words = ["-P", "FORWARD", "DROP"];
        scene.rig.node.ns.output("iptables", &words).map(drop)
    }),
    fault("CWY072", "a firewall of nftables that drops", |scene| {
        nft(scene, "add table inet firewall")?;
        nft(
            scene,
            "add chain inet firewall forward { type filter hook forward priority 0 ; policy drop ; }",
        )
    }),
    fault("CWY073", "an exact rule that nobody has made", |scene| {
        let root = &scene.rig.node.root;
        root.write("/etc/causeway/config.yaml", "exactRule: true\n")
    }),
    fault("CWY080", "a mistake in the configuration", |scene| {
        scene
            .rig
            .node
            .root
            .write("/etc/causeway/config.yaml", "excludedRanges: [10.0.0.0/33]\n")
    }),
    fault("CWY081", "a list that nobody has brought into force", |scene| {
        let list = "nonMasqueradeCIDRs: [192.168.0.0/16]\n";
        scene.rig.node.root.write("/etc/config/ip-masq-agent", list)
    }),
];
