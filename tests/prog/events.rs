//! What the programs tell `causeway monitor`.

use causeway_common::{
    event::{Event, EventHook, EventKind},
    reason::Reason,
};

use crate::{
    bench::{Bench, Hook, INTERNET, NODE, ROUTER_MAC},
    packets::{Ends, seen, udp},
};

fn out(bench: &Bench, src_port: u16) -> Vec<u8> {
    let ends = Ends {
        src: bench.a.addr,
        src_port,
        dst: INTERNET,
        dst_port: 53,
    };
    udp((bench.uplink_mac, ROUTER_MAC), ends, 64, b"question")
}

fn leaves(bench: &mut Bench, packet: &[u8]) -> Reason {
    let uplink = bench.uplink_ifindex;
    bench.run(Hook::ToUplink, uplink, packet).reason
}

fn of(events: &[Event], reason: Reason) -> Vec<Event> {
    let of_reason = events.iter().filter(|event| event.reason == reason as u8);
    of_reason.copied().collect()
}

#[test]
fn a_flow_that_begins_is_told_with_the_packet_that_the_pod_has_sent() {
    let mut bench = Bench::new();
    let packet = out(&bench, 40_000);
    let uplink = bench.uplink_ifindex;
    let ran = bench.run(Hook::ToUplink, uplink, &packet);
    assert_eq!(
        (ran.reason, seen(&ran.packet, None).src),
        (Reason::SnatKernel, NODE)
    );

    let events = bench.events();
    let [event] = events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(
        (event.reason, event.hook),
        (Reason::SnatKernel as u8, EventHook::TO_UPLINK)
    );
    assert_eq!(event.packet[..usize::from(event.captured)], packet[14..]);

    // What follows in the same flow is told nobody.
    for _ in 0..3 {
        assert_eq!(leaves(&mut bench, &packet), Reason::SnatKernel);
    }
    assert_eq!(bench.events(), []);
}

/// Flows begin faster than anybody reads, and what goes wrong is told all the same.
#[test]
fn flows_that_begin_leave_room_for_what_goes_wrong() {
    const ROOM: usize = EventKind::Flow.room() as usize;
    /// With the header that the kernel puts in front of a record.
    const RECORD: usize = size_of::<Event>() + 8;
    let mut bench = Bench::with_flow_entries(1 << 16);
    let mut port = 1024;
    for _ in 0..2 * ROOM / RECORD {
        if port % EventKind::Flow.rate() as u16 == 0 {
            bench.forget_budgets();
        }
        port += 1;
        let packet = out(&bench, port);
        assert_eq!(leaves(&mut bench, &packet), Reason::SnatKernel);
    }
    let mut malformed = out(&bench, port);
    malformed.truncate(14 + 20 + 4);
    malformed[17] = 24;
    assert_eq!(leaves(&mut bench, &malformed), Reason::SnatMalformed);

    let events = bench.events();
    let begun = of(&events, Reason::SnatKernel).len();
    assert!((ROOM..ROOM + RECORD).contains(&(begun * RECORD)), "{begun} flows");
    assert_eq!(of(&events, Reason::SnatMalformed).len(), 1);
}

/// A flood of flows costs no more than so many events a second.
#[test]
fn so_many_flows_are_told_of_in_a_second_and_cpu() {
    let mut bench = Bench::new();
    let begun = std::time::Instant::now();
    for port in 1024..2048 {
        let packet = out(&bench, port);
        leaves(&mut bench, &packet);
    }
    let seconds = begun.elapsed().as_secs() as usize + 2;
    let cpus = std::thread::available_parallelism().unwrap().get();
    let most = cpus * seconds * EventKind::Flow.rate() as usize;
    let told = bench.events().len();
    assert!(
        (EventKind::Flow.rate() as usize..=most).contains(&told),
        "{told} in {seconds} s"
    );
}
