//! The half of the datapath that serves IPv6: maps and programs of its own, made in the same tree when the first pod has an
//! address of that family. They are on no hook: the programs for IPv4 hand over what is of IPv6 (`cwy_ipv6`), and without them
//! leave it to the kernel.

use std::path::PathBuf;

use aya::{
    maps::{Map, MapData, ProgramArray},
    programs::{ProgramError, SchedClassifier},
};
use causeway_common::{
    addr::Address as _,
    maps::{Config, IPV6_MAP, Usage, V6_MAP_NAMES, V6_PROGRAM_NAMES, V6_SWEEP_PROGRAM},
};

use super::{
    Datapath, DatapathError,
    family::Family,
    layout,
    load::{self, Object},
    lock,
    pins::{self, PinTree},
    tables::{Tables, failed},
};
use crate::{links::Netlink, root::Root, settings::Settings};

type V6 = [u8; 16];

impl Datapath {
    /// Whether the programs for IPv6 are loaded.
    pub fn has_ipv6(&self) -> bool {
        self.ipv6.get().is_some()
    }

    /// Whether they can translate: those of an earlier build have no ranges.
    pub(super) fn translates_ipv6(&self) -> bool {
        self.has_ipv6() && self.pins.map(V6::MAPS.ranges).exists()
    }

    /// Loads the programs for IPv6, unless they are loaded. Returns whether they are now: those of IPv4 may be of a build
    /// that hands nothing over, and then the kernel routes IPv6 alone.
    pub(super) fn ensure_ipv6(&self) -> Result<bool, DatapathError> {
        if self.has_ipv6() {
            self.follow_ipv6_source()?;
            return Ok(true);
        }
        if !self.pins.map(IPV6_MAP).exists() {
            tracing::warn!(
                "the programs are an earlier build's: IPv6 is the kernel's until `causeway upgrade`"
            );
            return Ok(false);
        }
        let _lock = lock(&self.root)?;
        if !is_loaded(&self.pins) {
            load(&self.root, &self.pins)?;
            tracing::info!("the programs for IPv6 are loaded");
        }
        self.ipv6.get_or_init(|| ());
        Ok(true)
    }

    /// Tells the programs which address of IPv6 the uplink has, if that is another one. While it has none they keep the old
    /// one: what is translated goes on. Returns what was changed.
    fn follow_ipv6_source(&self) -> Result<Option<String>, DatapathError> {
        let tables = self.tables.of::<V6>();
        let config = tables.config()?;
        let source = Netlink::new()?.ipv6_source(config.uplink_ifindex)?;
        let Some(source) = source.filter(|source| source.octets() != config.node_addr) else {
            return Ok(None);
        };
        let _lock = lock(&self.root)?;
        tables.set_config(&Config {
            node_addr: source.octets(),
            ..tables.config()?
        })?;
        Ok(Some(format!("the uplink's address of IPv6 is {source} now")))
    }

    /// Puts right what the programs for IPv6 depend on, if they are loaded. Returns what was wrong.
    pub fn mend_ipv6(&self) -> Result<Vec<String>, DatapathError> {
        if !self.has_ipv6() {
            return Ok(Vec::new());
        }
        let mut mended: Vec<_> = self.follow_ipv6_source()?.into_iter().collect();
        if self.is_ipv6_right()? {
            return Ok(mended);
        }
        let _lock = lock(&self.root)?;
        let tables = self.tables.of::<V6>();
        let known = tables.config()?;
        let config = derived(&self.tables.config()?, &known);
        if known != config {
            tables.set_config(&config)?;
            mended.push(format!(
                "{} was not as {}",
                V6::MAPS.config,
                <[u8; 4]>::MAPS.config
            ));
        }
        let mut usage = tables.usage()?;
        if usage.get(&V6::UNSPECIFIED)?.is_none() {
            usage.insert(V6::UNSPECIFIED, Usage::default())?;
            mended.push(format!("entry :: of {} was missing", V6::MAPS.usage));
        }
        if !self.tables.is_handed_over(V6_PROGRAM_NAMES.len())? {
            hand_over(&self.pins, |name| self.pins.program(name))?;
            mended.push(format!("{IPV6_MAP} did not lead to the programs for IPv6"));
        }
        Ok(mended)
    }

    fn is_ipv6_right(&self) -> Result<bool, DatapathError> {
        let tables = self.tables.of::<V6>();
        let known = tables.config()?;
        Ok(known == derived(&self.tables.config()?, &known)
            && tables.usage()?.get(&V6::UNSPECIFIED)?.is_some()
            && self.tables.is_handed_over(V6_PROGRAM_NAMES.len())?)
    }
}

/// The last step of [`load`] is the last program's pin.
pub(super) fn is_loaded(pins: &PinTree) -> bool {
    V6_PROGRAM_NAMES.iter().all(|name| pins.program(name).exists())
}

/// What the programs for IPv6 know of the node follows from what those for IPv4 know; but for what is of that family alone,
/// which stays as it is `known`.
pub(super) fn derived(config: &Config<[u8; 4]>, known: &Config<V6>) -> Config<V6> {
    Config {
        node_addr: known.node_addr,
        uplink_ifindex: config.uplink_ifindex,
        uplink_mtu: config.uplink_mtu,
        seed: config.seed,
        pod_quota: config.pod_quota,
        wire_quota: config.wire_quota,
        range_list: known.range_list & 1,
        timeouts: config.timeouts,
    }
}

/// The caller holds the lock. What a killed call has left is made anew, but for maps: they may hold flows.
fn load(root: &Root, pins: &PinTree) -> Result<(), DatapathError> {
    for name in V6_PROGRAM_NAMES {
        pins::unpin(&pins.program(name))?;
    }
    let tables = Tables::new(pins.clone());
    let mut object = Object::V6.make(pins, Settings::noted(root).max_flows)?;
    layout::check(pins, &V6_MAP_NAMES)?;
    fill(root, pins, &tables)?;
    let of_v6 = tables.of::<V6>();
    if of_v6.usage()?.get(&V6::UNSPECIFIED)?.is_none() {
        of_v6.usage()?.insert(V6::UNSPECIFIED, Usage::default())?;
    }
    load::verify(&mut object, &V6_PROGRAM_NAMES)?;
    load::pin_programs(&mut object, &V6_PROGRAM_NAMES, |name| staged(pins, name))?;
    settle(pins)
}

/// Fills what the programs read before they run. Where they run already, as those of an earlier build, that stays right.
fn fill(root: &Root, pins: &PinTree, tables: &Tables) -> Result<(), DatapathError> {
    for name in V6_MAP_NAMES {
        pins::restrict(&pins.map(name), 0o640)?;
    }
    let (config, of_v6) = (tables.config()?, tables.of::<V6>());
    let source = Netlink::new()?.ipv6_source(config.uplink_ifindex)?;
    let known = of_v6.config()?;
    let known = Config {
        node_addr: source.map_or(known.node_addr, |source| source.octets()),
        ..known
    };
    of_v6.set_config(&derived(&config, &known))?;
    of_v6
        .exchange_ranges(&Settings::noted(root).ranges_v6())
        .map(drop)
}

/// Exchanges the programs for those of this build, if they are loaded. The caller holds the lock.
pub(super) fn exchange(root: &Root, pins: &PinTree) -> Result<(), DatapathError> {
    if !is_loaded(pins) {
        return Ok(());
    }
    let mut object = Object::V6.open(pins)?;
    fill(root, pins, &Tables::new(pins.clone()))?;
    load::verify(&mut object, &V6_PROGRAM_NAMES)?;
    load::pin_programs(&mut object, &V6_PROGRAM_NAMES, |name| staged(pins, name))?;
    pins::unpin(&pins.program(V6_SWEEP_PROGRAM))?;
    settle(pins)
}

/// Packets are handed over to the staged programs, which get their names after that.
fn settle(pins: &PinTree) -> Result<(), DatapathError> {
    hand_over(pins, |name| staged(pins, name))?;
    for name in V6_PROGRAM_NAMES {
        let path = pins.program(name);
        std::fs::rename(staged(pins, name), &path).map_err(|source| DatapathError::file(&path, source))?;
    }
    Ok(())
}

fn staged(pins: &PinTree, name: &str) -> PathBuf {
    pins.program(&format!("{name}_next"))
}

fn hand_over(pins: &PinTree, path: impl Fn(&str) -> PathBuf) -> Result<(), DatapathError> {
    let map = pins.map(IPV6_MAP);
    let map = MapData::from_pin(&map).map_err(|source| DatapathError::Pin {
        path: map,
        source: source.into(),
    })?;
    let mut programs = ProgramArray::try_from(Map::ProgramArray(map)).map_err(failed(IPV6_MAP))?;
    for (hook, name) in (0..).zip(V6_PROGRAM_NAMES) {
        let broken = |source: ProgramError| DatapathError::Program {
            name,
            source: Box::new(source),
        };
        let program = SchedClassifier::from_pin(path(name)).map_err(broken)?;
        programs
            .set(hook, program.fd().map_err(broken)?, 0)
            .map_err(failed(IPV6_MAP))?;
    }
    Ok(())
}
