//! The virtual address goes back and forth under connections that are held open, and constant new ones.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use causeway_tests::{delegated::VIPS, netns::Netns, rng::Rng};

use crate::{
    change::{Scene, at, scene, set},
    clients::{Watch, is_refused},
};

/// Seconds that connections may go on.
const DRAIN: u32 = 1;
/// When everybody must have left an address: the drain, and what the agent, 200 resets and as many TLS handshakes take on a
/// machine that does other things.
const GONE_AFTER: Duration = Duration::from_millis(4500);

#[test]
fn nobody_stays_behind_when_the_address_flips() -> Result<()> {
    flip(9, 3, 24).map(drop)
}

/// 1,000 flips, 111 of them with time to drain, under 200 connections.
#[test]
#[ignore = "takes a quarter of an hour"]
fn long_a_thousand_flips_under_two_hundred_connections() -> Result<()> {
    let figures = flip(1000, 9, 200)?;
    println!("{figures}");
    Ok(())
}

/// What the watchers share.
struct Shared {
    /// Which of [`VIPS`] is in force.
    current: AtomicUsize,
    over: AtomicBool,
    connections: AtomicU64,
    messages: AtomicU64,
    resets: AtomicU64,
    /// Where each watcher is.
    at: Vec<Mutex<At>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Connecting(Ipv4Addr),
    Connected(Ipv4Addr),
}

impl Shared {
    fn set(&self, watcher: usize, at: At) {
        *self.at[watcher].lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// How many watchers are elsewhere, by where, their namespace's number, and whether they talk.
    fn elsewhere(&self, vip: Ipv4Addr, namespaces: usize) -> BTreeMap<(At, usize, bool), usize> {
        let mut elsewhere = BTreeMap::new();
        for (number, at) in self.at.iter().enumerate() {
            let at = *at.lock().unwrap_or_else(PoisonError::into_inner);
            if at != At::Connected(vip) {
                *elsewhere
                    .entry((at, number % namespaces, talks(number)))
                    .or_default() += 1;
            }
        }
        elsewhere
    }
}

/// Every other watcher says nothing.
fn talks(watcher: usize) -> bool {
    watcher.is_multiple_of(2)
}

/// Flips `flips` times, every `pause_every`th with time to drain, under `watchers` connections. Returns figures.
fn flip(flips: usize, pause_every: usize, watchers: usize) -> Result<String> {
    let scene = scene(DRAIN)?;
    let _servers = [scene.plane.serve(VIPS[0])?, scene.plane.serve(VIPS[1])?];
    let shared = Shared {
        current: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        connections: AtomicU64::new(0),
        messages: AtomicU64::new(0),
        resets: AtomicU64::new(0),
        at: (0..watchers)
            .map(|_| Mutex::new(At::Connecting(VIPS[0])))
            .collect(),
    };
    let namespaces = scene.everybody();
    let took = thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..watchers {
            let (shared, scene, ns) = (&shared, &scene, namespaces[number % namespaces.len()]);
            threads.push(scope.spawn(move || watch(shared, scene, ns, number)));
        }
        let flipped = flip_all(&scene, &shared, flips, pause_every);
        shared.over.store(true, Ordering::SeqCst);
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a watcher has panicked"))??;
        }
        flipped
    })?;
    ensure!(scene.rig.leaks().is_empty());
    let [connections, messages, resets] =
        [&shared.connections, &shared.messages, &shared.resets].map(|count| count.load(Ordering::SeqCst));
    ensure!(
        resets > 0 && messages > connections,
        "{resets} {messages} {connections}"
    );
    let mut took = took;
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    Ok(format!(
        "{flips} flips: in force after {:?} (median), {:?} (99th), {:?} (most); {connections} connections, \
         {messages} messages, {resets} resets after the drain",
        at(50),
        at(99),
        at(100)
    ))
}

fn flip_all(scene: &Scene, shared: &Shared, flips: usize, pause_every: usize) -> Result<Vec<Duration>> {
    let mut rng = Rng::new(7);
    let mut took = Vec::new();
    wait_until_all_are(scene, shared, VIPS[0])?;
    for flip in 1..=flips {
        let next = flip % 2;
        // Whoever connects from here on may already be refused at the old address, and goes to the new one.
        shared.current.store(next, Ordering::SeqCst);
        took.push(set(&scene.rig.node, &["--vip", &VIPS[next].to_string()])?);
        let last = took.last().copied().unwrap_or_default();
        ensure!(last < GONE_AFTER, "flip {flip} was in force after {last:?}");
        let ns = scene.everybody()[flip % 3];
        is_refused(ns, at(VIPS[1 - next])).with_context(|| format!("flip {flip}: the old address"))?;
        let new = scene.trust.connect(ns, at(VIPS[next]))?;
        ensure!(
            new.seen_as == new.local,
            "{} is seen as {}",
            new.local,
            new.seen_as
        );
        if flip.is_multiple_of(pause_every) {
            wait_until_all_are(scene, shared, VIPS[next]).with_context(|| format!("after flip {flip}"))?;
        } else {
            thread::sleep(Duration::from_millis(20 + rng.below(200) as u64));
        }
    }
    Ok(took)
}

fn wait_until_all_are(scene: &Scene, shared: &Shared, vip: Ipv4Addr) -> Result<()> {
    let begun = Instant::now();
    loop {
        let elsewhere = shared.elsewhere(vip, scene.everybody().len());
        if elsewhere.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > GONE_AFTER {
            let status = scene.rig.node.causeway(&["apiserver", "status"])?;
            let flows = scene.rig.node.causeway(&["flows"])?;
            bail!("not at {vip} after {GONE_AFTER:?}: {elsewhere:?}\n{status}\n{flows}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Holds a connection open, and makes another one when it is ended.
fn watch(shared: &Shared, scene: &Scene, ns: &Netns, number: usize) -> Result<()> {
    while !shared.over.load(Ordering::SeqCst) {
        let vip = VIPS[shared.current.load(Ordering::SeqCst)];
        shared.set(number, At::Connecting(vip));
        // The address may be given up between the two.
        let Ok(mut watch) = scene.trust.connect(ns, SocketAddrV4::new(vip, 443)) else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        ensure!(
            watch.seen_as == watch.local,
            "{} is seen as {}",
            watch.local,
            watch.seen_as
        );
        shared.connections.fetch_add(1, Ordering::SeqCst);
        shared.set(number, At::Connected(vip));
        hold(shared, &mut watch, talks(number));
    }
    Ok(())
}

/// Until the connection is ended.
fn hold(shared: &Shared, watch: &mut Watch, talks: bool) {
    while !shared.over.load(Ordering::SeqCst) {
        if talks {
            if watch.chat().is_err() {
                shared.resets.fetch_add(1, Ordering::SeqCst);
                return;
            }
            shared.messages.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
        } else if watch.is_reset_within(Duration::from_millis(100)) {
            shared.resets.fetch_add(1, Ordering::SeqCst);
            return;
        }
    }
}
