//! A pod that opens connections as fast as it can, and never one to its end.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    dual_stack,
    echo::Echo,
    fabric::{INTERNET, NODE, VNET},
    generator::{Course, Generator, Kind},
    netns::Netns,
    node::Pod,
    offload,
    rig::Rig,
    talk::{Tcp, Udp},
};

/// Nobody answers there, not even with a reset.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
const NOWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x99);
/// The port of all servers.
const PORT: u16 = 7;
/// The flood leaves the others little of the CPU on a busy machine. What counts is that they go on.
const PATIENCE: Duration = Duration::from_secs(30);
/// Twice what the flow table can hold.
const SYNS: u32 = 600_000;
/// How often so many are sent, if the node has room for all that reach it.
const MOST_FLOODS: usize = 30;

/// A node, and addresses of the family that everything here is of.
struct Scene {
    rig: Rig,
    is_ipv6: bool,
}

impl Scene {
    fn of_ipv4() -> Result<Self> {
        Ok(Self {
            rig: Rig::causeway()?,
            is_ipv6: false,
        })
    }

    fn of_ipv6() -> Result<Self> {
        Ok(Self {
            rig: Rig::masquerading_ipv6()?,
            is_ipv6: true,
        })
    }

    fn choose(&self, of_ipv4: Ipv4Addr, of_ipv6: Ipv6Addr) -> IpAddr {
        if self.is_ipv6 {
            of_ipv6.into()
        } else {
            of_ipv4.into()
        }
    }

    fn node(&self) -> IpAddr {
        self.choose(NODE, dual_stack::NODE)
    }

    fn internet(&self) -> SocketAddr {
        SocketAddr::new(self.choose(INTERNET, dual_stack::INTERNET), PORT)
    }

    fn vnet(&self) -> SocketAddr {
        SocketAddr::new(self.choose(VNET, dual_stack::VNET), PORT)
    }

    fn addr(&self, pod: &Pod) -> Result<IpAddr> {
        if self.is_ipv6 {
            Ok(pod.addr_v6()?.into())
        } else {
            Ok(pod.addr.into())
        }
    }

    fn of_pod(&self, pod: &Pod) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.addr(pod)?, PORT))
    }

    /// A host outside that knows the way to pods.
    fn visitor(&self) -> &Netns {
        if self.is_ipv6 {
            &self.rig.fabric.vnet
        } else {
            &self.rig.fabric.partner
        }
    }

    /// Every peer has seen the node's address alone, and nothing has left with another.
    fn is_tight(&self, outside: &Echo) -> Result<()> {
        ensure!(outside.peers().iter().all(|peer| peer.ip() == self.node()));
        ensure!(!self.is_ipv6 || dual_stack::leaked(&self.rig.fabric)? == 0);
        Ok(())
    }
}

fn flood(scene: &Scene, pod: &Pod) -> Result<()> {
    let (rig, nowhere) = (&scene.rig, scene.choose(NOWHERE, NOWHERE_V6));
    rig.fabric.router.ip(&format!("route add blackhole {nowhere}"))?;
    offload::set(&rig.node.ns, &rig.node.host_interface(pod)?, offload::GRO, true)?;
    let [pod_mac, gateway_mac] = pod.macs()?;
    let course = Course {
        gateway_mac,
        pod_mac,
        pod: scene.addr(pod)?,
        to: nowhere,
        port: 80,
        kind: Kind::Syns,
    };
    let generator = Generator::new(&pod.ns, "eth0", &course)?;
    // On a busy machine most of them can find the queue between the pod and the node full.
    for _ in 0..MOST_FLOODS {
        let took = pod.ns.run(|| generator.send(SYNS))??;
        println!("{SYNS} SYNs in {took:?}");
        if refused(rig)? > 0 {
            break;
        }
    }
    Ok(())
}

#[test]
fn a_syn_flood_leaves_others_alone() -> Result<()> {
    leaves_others_alone(&Scene::of_ipv4()?)
}

#[test]
fn a_syn_flood_of_ipv6_leaves_others_alone() -> Result<()> {
    leaves_others_alone(&Scene::of_ipv6()?)
}

/// The flood has its pod's share of the table: what was there before goes on, and what others begin meanwhile finds room.
fn leaves_others_alone(scene: &Scene) -> Result<()> {
    let rig = &scene.rig;
    let (attacker, victim) = (rig.pod("attacker")?, rig.pod("victim")?);
    let outside = Echo::on(&rig.fabric.internet, scene.internet())?;
    let to_pod = scene.of_pod(&victim)?;
    let _echoes = [
        Echo::on(&rig.fabric.vnet, scene.vnet())?,
        Echo::on(&victim.ns, to_pod)?,
    ];
    // Carried with and without translation, and opened from outside.
    let ways = [
        (&victim.ns, scene.internet()),
        (&victim.ns, scene.vnet()),
        (scene.visitor(), to_pod),
    ];
    let mut established = ways
        .iter()
        .map(|(client, to)| Talks::open(client, *to))
        .collect::<Result<Vec<_>>>()?;
    let mut all = || -> Result<()> {
        established.iter_mut().try_for_each(Talks::chat)?;
        ways.iter()
            .try_for_each(|(client, to)| Talks::open(client, *to)?.chat())
            .context("new ones")
    };
    all()?;
    let turns = beside_a_flood(scene, &attacker, &mut all)?;
    ensure!(turns > 3, "the flood was over after {turns} turns");
    all().context("after the flood")?;
    scene.is_tight(&outside)?;
    is_refused_some(rig)
}

/// A connection, and datagrams.
struct Talks(Tcp, Udp);

impl Talks {
    fn open(client: &Netns, to: SocketAddr) -> Result<Self> {
        let (tcp, udp) = (
            Tcp::connect_within(client, to, PATIENCE)?,
            Udp::connect(client, to)?,
        );
        tcp.0.set_read_timeout(Some(PATIENCE))?;
        udp.0.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(tcp, udp))
    }

    fn chat(&mut self) -> Result<()> {
        self.0.chat(2)?;
        self.1.chat(2)
    }
}

/// How often `others` was done while the pod floods.
fn beside_a_flood(scene: &Scene, attacker: &Pod, mut others: impl FnMut() -> Result<()>) -> Result<u32> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let done = flood(scene, attacker);
            over.store(true, Ordering::Relaxed);
            done
        });
        let mut turns = 0;
        while !over.load(Ordering::Relaxed) {
            others().with_context(|| format!("after {turns} turns in the flood"))?;
            turns += 1;
        }
        flood.join().expect("no panic")?;
        Ok(turns)
    })
}

fn is_refused_some(rig: &Rig) -> Result<()> {
    ensure!(refused(rig)? > 0, "the table had room for all of it");
    Ok(())
}

fn refused(rig: &Rig) -> Result<u64> {
    Ok(rig.node.count("snat_table_full")? + rig.node.count("snat_quota")?)
}
