//! RFC 4787: whom a mapping lets in, what becomes of datagrams to the external address, and that payloads stay.

use anyhow::{Result, ensure};
use causeway_tests::{rules, talk::PATIENCE};

use crate::{
    family::{Family, of_both_families},
    peer::Peer,
    side::agree,
    udp_rfc4787::{PORT, SERVER, server},
};

of_both_families!(
    req_8_only_the_remote_of_a_mapping_comes_in,
    req_9_the_external_address_leads_to_the_node_itself,
    req_9a_by_a_host_port_a_pod_sees_the_senders_own_address,
    req_10_payloads_are_nobodys_business,
);

/// RFC 4787 REQ-8 | whom a mapping lets in: everybody ("endpoint-independent filtering") or every port of a known address | the very address and
/// port that the pod has sent to | the same | by design not: an entry is for one remote; it is the strictest of the filters that the
/// RFC knows
fn req_8_only_the_remote_of_a_mapping_comes_in(family: Family) -> Result<()> {
    let [known, other_port, other_address] = agree(family, |side| {
        let (pod, server) = (side.peer(&side.pod, PORT)?, server(side)?);
        let mapped = pod.reach(&server)?;
        let others = [
            Peer::on(side.internet(), side.near_at(SERVER + 1))?,
            Peer::on(side.internet(), side.far_at(SERVER))?,
        ];
        Ok([
            server.does_reach(mapped, &pod)?,
            others[0].does_reach(mapped, &pod)?,
            others[1].does_reach(mapped, &pod)?,
        ])
    })?;
    ensure!(known && !other_port && !other_address);
    Ok(())
}

/// RFC 4787 REQ-9 | an inside host reaches another one by that one's external address and port ("hairpinning") | the packet is for the
/// node itself, which has no such port: ICMP port unreachable | the same | by design not: MASQUERADE translates at the uplink alone; pods
/// reach each other by their own addresses
fn req_9_the_external_address_leads_to_the_node_itself(family: Family) -> Result<()> {
    agree(family, |side| {
        let (server, neighbour) = (server(side)?, side.rig.pod("b")?);
        let (a, b) = (side.peer(&side.pod, PORT + 1)?, side.peer(&neighbour, PORT)?);
        let mapped = b.reach(&server)?;
        let ears = side.pinger(&side.pod.ns, 1)?;
        let reached = a.does_reach(mapped, &b)?;
        let told = ears.hear(PATIENCE, |message| message.icmp.kind() == side.port_unreachable())?;
        let seen = (reached, told.map(|message| message.from));
        ensure!(seen == (false, Some(side.node())), "{seen:?}");
        Ok(())
    })
}

/// RFC 4787 REQ-9a | a hairpinned datagram shows the sender's external address | a hostPort, which is the kernel's, shows the
/// sender's own; a pod that calls itself is seen with the node's | the same | by design not: portmap's rules decide
fn req_9a_by_a_host_port_a_pod_sees_the_senders_own_address(family: Family) -> Result<()> {
    let seen = agree(family, |side| {
        let neighbour = side.rig.pod("b")?;
        let (a, b) = (side.peer(&side.pod, PORT)?, side.peer(&neighbour, SERVER)?);
        rules::host_port(&side.rig.node.ns, 8053, b.addr)?;
        let by_host_port = side.node_at(8053);
        let of_other = a.reach_by(by_host_port, &b)?.ip() == a.addr.ip();
        let of_itself = side.peer(&neighbour, PORT)?.reach_by(by_host_port, &b)?.ip();
        Ok((of_other, of_itself != b.addr.ip()))
    })?;
    ensure!(seen == (true, true), "{seen:?}");
    Ok(())
}

/// RFC 4787 REQ-10 | no application gateway rewrites UDP payloads | there is none: addresses in SIP, TFTP and DNS payloads stay | none either, unless a
/// rule assigns a helper | met
fn req_10_payloads_are_nobodys_business(family: Family) -> Result<()> {
    agree(family, |side| {
        for port in [53, 69, 5060] {
            let (pod, server) = (
                side.peer(&side.pod, port)?,
                Peer::on(side.internet(), side.near_at(port))?,
            );
            let message = format!(
                "INVITE sip:b@{} SIP/2.0\r\nVia: SIP/2.0/UDP {1}\r\nContact: <sip:a@{1}>\r\n\r\nc=IN {2}\r\n",
                server.addr,
                pod.addr,
                pod.addr.ip()
            );
            pod.socket.send_to(message.as_bytes(), server.addr)?;
            let from = server.hear(message.as_bytes(), PATIENCE)?;
            ensure!(from.is_some(), "port {port}: changed on the way");
        }
        Ok(())
    })
}
