//! Where addresses come from: the wireserver over HTTP, the interface's own secondary addresses, a list, nothing.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{SocketAddrV4, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use causeway_tests::{fabric::WIRESERVER, netns::Netns};
use rustix::net::{Shutdown, shutdown};
use serde_json::{Value, json};

use crate::call::{Call, World, address, side_by_side};

/// The platform's host, answering with a list of addresses.
pub(crate) struct Wireserver {
    listener: TcpListener,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Wireserver {
    /// Starts it, without an answer.
    pub(crate) fn start(world: &World) -> Result<Self> {
        let listener = world
            .fabric
            .router
            .bind(|| TcpListener::bind(SocketAddrV4::new(WIRESERVER, 80)))?;
        let (answer, asked) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (listener, answer, asked) = (listener.try_clone()?, Arc::clone(&answer), Arc::clone(&asked));
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let body = answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    serve(&stream, &body).ok();
                }
            }
        });
        Ok(Self {
            listener,
            answer,
            asked,
            thread: Some(thread),
        })
    }

    /// Sets the list: the hosts of 10.240.0.0/16 beside the node's own 4.
    fn list(&self, world: &World, hosts: &[u8]) -> Result<()> {
        let address = |host: &u8| format!("<IPAddress Address=\"10.240.0.{host}\" IsPrimary=\"false\"/>");
        let subnet = format!(
            "<IPSubnet Prefix=\"10.240.0.0/16\"><IPAddress Address=\"10.240.0.4\" IsPrimary=\"true\"/>{}</IPSubnet>",
            hosts.iter().map(address).collect::<String>()
        );
        self.answer(world, &subnet)
    }

    /// Sets the list: these subnets of the node's network card.
    pub(crate) fn answer(&self, world: &World, subnets: &str) -> Result<()> {
        let mac = world.node.mac()?.map(|byte| format!("{byte:02X}")).concat();
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><Interfaces><Interface MacAddress=\"{mac}\" IsPrimary=\"true\">\
             {subnets}</Interface></Interfaces>"
        );
        self.say(&format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{xml}",
            xml.len()
        ));
        Ok(())
    }

    fn say(&self, answer: &str) {
        answer.clone_into(&mut self.answer.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Wireserver {
    fn drop(&mut self) {
        // Wakes accept(); it fails only when the socket is gone, and then accept() has ended too.
        shutdown(&self.listener, Shutdown::Both).ok();
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve(mut stream: &std::net::TcpStream, answer: &str) -> std::io::Result<()> {
    let mut request = BufReader::new(stream);
    let mut first = String::new();
    request.read_line(&mut first)?;
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let known = first.starts_with("GET /machine/plugins?comp=nmagent&type=getinterfaceinfov1 HTTP/1.1");
    stream.write_all(
        if known {
            answer
        } else {
            "HTTP/1.1 404 Not Found\r\n\r\n"
        }
        .as_bytes(),
    )
}

fn ipam<'a>(world: &'a World, container: &str, interval: u32) -> Call<'a> {
    let ipam = json!({ "type": "azure-vnet-ipam", "queryInterval": interval.to_string() });
    world.ipam("ADD", container).with("ipam", ipam)
}

#[test]
fn the_wireserver_is_asked_once_for_many_pods() -> Result<()> {
    let world = World::new(20)?;
    let server = Wireserver::start(&world)?;
    server.list(&world, &(5..25).collect::<Vec<u8>>())?;
    let calls: Vec<_> = (0..20).map(|n| ipam(&world, &format!("c{n}"), 3600)).collect();
    let given: BTreeSet<_> = side_by_side(&calls)?.iter().map(address).collect::<Result<_>>()?;
    assert_eq!((given.len(), server.asked()), (20, 1));
    let failure = ipam(&world, "late", 3600).error()?;
    assert!(
        failure.details.contains("20 of 20 addresses")
            && failure.details.contains("http://168.63.129.16/machine"),
        "{failure:?}"
    );
    assert!(failure.details.contains(" s old"), "{failure:?}");
    Ok(())
}

#[test]
fn a_wireserver_that_fails_leaves_the_last_good_list() -> Result<()> {
    let world = World::new(3)?;
    let ns = Netns::new()?;
    let stock = |verb| {
        let ipam = json!({ "type": "azure-vnet-ipam", "environment": "azure", "queryInterval": "0" });
        Ok::<_, anyhow::Error>(world.network(verb, "container-1")?.netns(&ns).with("ipam", ipam))
    };
    let failure = stock("ADD")?.error()?;
    assert!(
        failure.msg.contains("no available address pools") && failure.msg.contains("cannot connect"),
        "{failure:?}"
    );
    let server = Wireserver::start(&world)?;
    for (answer, needle) in [
        ("HTTP/1.1 503 Busy\r\n\r\n", "503 Busy"),
        ("HTTP/1.1 200 OK\r\n\r\n<html></html>", "not a list of Interfaces"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n<Interfaces>",
            "cut short",
        ),
    ] {
        server.say(answer);
        let failure = stock("ADD")?.error()?;
        assert!(failure.msg.contains(needle), "{answer}: {failure:?}");
        world.assert_empty()?;
    }
    server.list(&world, &[5])?;
    stock("ADD")?.ok()?;
    ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    stock("DEL")?.ok()?;
    server.say("HTTP/1.1 200 OK\r\n\r\n");
    stock("ADD")?.ok()?;
    stock("DEL")?.ok()?;
    drop(server);
    stock("ADD")?.ok()?;
    let failure = ipam(&world, "second", 0).error()?;
    assert!(
        failure.details.contains("1 of 1") && failure.details.contains("cannot connect"),
        "{failure:?}"
    );
    let status = world.network("STATUS", "")?.with("cniVersion", json!("1.1.0"));
    let status = status
        .with("ipam", json!({ "type": "azure-vnet-ipam" }))
        .error()?;
    assert_eq!((status.code, status.msg.as_str()), (50, "No available addresses"));
    // A new list is seen when the server is back.
    let server = Wireserver::start(&world)?;
    server.list(&world, &[5, 6])?;
    assert_eq!(address(&ipam(&world, "second", 0).ok()?)?.octets()[3], 6);
    assert_eq!(server.asked(), 1);
    stock("DEL")?.ok()?;
    Ok(())
}

fn carried(world: &World) -> Result<BTreeSet<String>> {
    let eth0 = world.node.ns.json("ip", &["-j", "addr", "show", "dev", "eth0"])?;
    let addresses = eth0[0]["addr_info"].as_array().context("no addresses")?.iter();
    Ok(addresses
        .filter_map(|address| Some(address["local"].as_str()?.to_owned()))
        .collect())
}

#[test]
fn secondary_addresses_move_from_the_interface_to_pods_and_back() -> Result<()> {
    let world = World::new(2)?;
    world
        .node
        .ns
        .ip("addr add 10.240.0.5/16 dev eth0\naddr add 10.240.0.6/16 dev eth0")?;
    let before = carried(&world)?;
    assert_eq!(before.len(), 3);
    let pods = [Netns::new()?, Netns::new()?];
    let at = |verb, n: usize| {
        let call = world.network(verb, &format!("container-{n}"))?.netns(&pods[n]);
        Ok::<_, anyhow::Error>(call.with("ipam", json!({ "type": "azure-vnet-ipam", "environment": "nic" })))
    };
    for n in [0, 1] {
        at("ADD", n)?.ok()?;
    }
    assert_eq!(carried(&world)?, BTreeSet::from(["10.240.0.4".to_owned()]));
    pods[0].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.6"])?;
    pods[1].output("ping", &["-c1", "-i0.2", "-w5", "10.240.1.10"])?;
    let failure = world.network("ADD", "third")?.netns(&world.fabric.partner);
    let failure = failure
        .with("ipam", json!({ "type": "azure-vnet-ipam", "environment": "nic" }))
        .error()?;
    assert!(failure.details.contains("2 of 2 addresses"), "{failure:?}");
    at("DEL", 0)?.ok()?;
    assert!(carried(&world)?.contains("10.240.0.5"));
    pods[1].output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    // A failed ADD gives the address back as well.
    pods[0].ip("link add eth0 type veth peer name other")?;
    at("ADD", 0)?.error()?;
    for _ in 0..2 {
        at("DEL", 1)?.env("CNI_NETNS", "").ok()?;
    }
    assert_eq!(carried(&world)?, before);
    world.assert_empty()
}

#[test]
fn addresses_of_the_configuration() -> Result<()> {
    let world = World::new(1)?;
    let ns = Netns::new()?;
    let with = |more: Value| {
        let mut ipam = json!({ "type": "azure-vnet-ipam", "environment": "static" });
        for (key, value) in more.as_object().into_iter().flatten() {
            ipam[key] = value.clone();
        }
        Ok::<_, anyhow::Error>(world.network("ADD", "container-1")?.netns(&ns).with("ipam", ipam))
    };
    for (more, needle) in [
        (json!({}), "needs ipam.subnet"),
        (json!({ "subnet": "10.240.0.0/16" }), "needs a list of addresses"),
        (
            json!({ "subnet": "10.240.0.0/16", "addresses": ["x"] }),
            "neither an address nor a range",
        ),
    ] {
        let failure = with(more)?.error()?;
        assert!(failure.code == 7 && failure.msg.contains(needle), "{failure:?}");
    }
    let result =
        with(json!({ "subnet": "10.240.0.0/16", "addresses": ["10.240.0.50-10.240.0.51"] }))?.ok()?;
    assert_eq!(address(&result)?.octets()[3], 50);
    ns.output("ping", &["-c1", "-i0.2", "-w5", "10.240.0.4"])?;
    world.network("DEL", "container-1")?.ok()?;
    world.assert_empty()
}

#[test]
fn the_null_source_has_a_pool_without_addresses() -> Result<()> {
    let world = World::new(1)?;
    let ipam = json!({ "type": "azure-vnet-ipam", "environment": "null" });
    let failure = world.ipam("ADD", "a").with("ipam", ipam).error()?;
    assert_eq!(
        (failure.code, failure.msg.as_str()),
        (100, "Failed to allocate address: No available addresses")
    );
    Ok(())
}
