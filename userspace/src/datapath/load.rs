//! Loads the embedded object: maps and programs are made and pinned in a staging tree, filled and attached to the
//! uplink, and only then given their final name. Whoever sees the final name sees a complete datapath.

use std::{path::PathBuf, thread};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{Iter, Program, ProgramError, SchedClassifier, Xdp},
};
use causeway_common::maps::{
    Config, MAP_NAMES, PROGRAM_NAMES, SHARED_MAP_NAMES, Usage, V6_MAP_NAMES, V6_SWEEP_PROGRAM, XDP_PROGRAM,
};

use super::{
    DatapathError,
    attach::{self, AttachMode, Hook},
    family::Family as _,
    layout,
    pins::{self, PinTree},
    tables::Tables,
    upgrade,
};
use crate::{
    links::Netlink,
    node::{Sysctls, Uplink},
    restore::Restore,
    root::Root,
    settings::Settings,
};

/// The kernel programs, compiled by the build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/causeway.bpf.o"));

/// Those for IPv6.
pub static OBJECT_V6: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/causeway6.bpf.o"));

/// Loads, pins and attaches the datapath. The caller holds the lock and has seen that there is none.
pub(crate) fn load(root: &Root, uplink: &Uplink, mode: AttachMode) -> Result<(), DatapathError> {
    pins::mount_bpffs(root)?;
    if let Some(path) = pins::foreign_trees(root)?.into_iter().next() {
        return upgrade::take_over(root, &path).map(drop);
    }
    let staging = PinTree::staging(root);
    discard(&staging)?;
    let loaded = fill(root, &staging, uplink, mode).and_then(|()| staging.rename(&PinTree::live(root)));
    if loaded.is_err()
        && let Err(error) = undo(&staging, uplink)
    {
        tracing::warn!(%error, "cannot undo the loading of a datapath that failed");
    }
    if loaded.is_ok() {
        upgrade::note_build(root);
    }
    loaded
}

/// Takes back what [`fill`] did: nothing stays attached without its pins.
fn undo(staging: &PinTree, uplink: &Uplink) -> Result<(), DatapathError> {
    let mut netlink = Netlink::new()?;
    for hook in Hook::uplink(&uplink.name, uplink.ifindex) {
        attach::clsact::detach_filter(&mut netlink, &hook)?;
    }
    discard(staging)
}

/// Removes a tree and detaches at once what its links hold.
pub(crate) fn discard(pins: &PinTree) -> Result<(), DatapathError> {
    for path in pins.link_pins()? {
        attach::detach_pin(&path)?;
    }
    pins.remove()
}

fn fill(root: &Root, staging: &PinTree, uplink: &Uplink, mode: AttachMode) -> Result<(), DatapathError> {
    staging.create()?;
    let settings = Settings::noted(root);
    load_object(staging, settings.max_flows)?;
    layout::check(staging, &MAP_NAMES)?;
    configure(&Tables::new(staging.clone()), uplink, &settings)?;
    let (mut netlink, restore) = (Netlink::new()?, Restore::new(root));
    for hook in Hook::uplink(&uplink.name, uplink.ifindex) {
        let mechanism = attach::attach(&mut netlink, staging, &restore, &hook, mode)?;
        tracing::info!(%hook, program = hook.program(), mechanism = mechanism.name(), "attached");
    }
    Ok(())
}

/// An embedded object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// The programs on the hooks, which serve IPv4.
    V4,
    /// Those that they hand IPv6 over to.
    V6,
}

impl Object {
    /// The object with its maps: those that are pinned, or new ones, which are pinned.
    pub(crate) fn open(self, pins: &PinTree) -> Result<Ebpf, DatapathError> {
        self.load(pins, EbpfLoader::new())
    }

    /// As [`Self::open`]; a table of flows that is made is made for so many.
    pub(crate) fn make(self, pins: &PinTree, max_flows: u32) -> Result<Ebpf, DatapathError> {
        let maps = match self {
            Self::V4 => <[u8; 4]>::MAPS,
            Self::V6 => <[u8; 16]>::MAPS,
        };
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries(maps.flows, 2 * max_flows)
            .map_max_entries(maps.ages, max_flows);
        self.load(pins, loader)
    }

    fn load(self, pins: &PinTree, mut loader: EbpfLoader<'_>) -> Result<Ebpf, DatapathError> {
        // Nothing in the object depends on the kernel's own types, and reading them takes longer than all the rest.
        loader.btf(None);
        let (bytes, names) = match self {
            Self::V4 => (OBJECT, MAP_NAMES.to_vec()),
            Self::V6 => (OBJECT_V6, [&V6_MAP_NAMES[..], &SHARED_MAP_NAMES].concat()),
        };
        for name in names {
            loader.map_pin_path(name, pins.map(name));
        }
        loader
            .load(bytes)
            .map_err(|source| DatapathError::Load(Box::new(source)))
    }

    /// The object that has the program.
    fn with(program: &str) -> Self {
        if program == V6_SWEEP_PROGRAM {
            Self::V6
        } else {
            Self::V4
        }
    }
}

/// The pin of a sweep program of a tree, which is loaded when it is first asked for.
pub(crate) fn sweep_program(pins: &PinTree, name: &'static str) -> Result<PathBuf, DatapathError> {
    on_demand(pins, name, |program| {
        let program: &mut Iter = program.try_into()?;
        program.load("bpf_map_elem", &Btf::from_sys_fs()?)
    })
}

/// The pin of the XDP program of a tree, which is loaded when it is first asked for.
pub(crate) fn xdp_program(pins: &PinTree) -> Result<PathBuf, DatapathError> {
    on_demand(pins, XDP_PROGRAM, |program| {
        let program: &mut Xdp = program.try_into()?;
        program.load()
    })
}

/// The pin of the program of a tree that sends frames, which is loaded when it is first asked for.
#[cfg(feature = "cli")]
pub(crate) fn inject_program(pins: &PinTree) -> Result<PathBuf, DatapathError> {
    on_demand(pins, causeway_common::maps::INJECT_PROGRAM, |program| {
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()
    })
}

/// The caller is the only one who asks.
fn on_demand(
    pins: &PinTree,
    name: &'static str,
    load: impl FnOnce(&mut Program) -> Result<(), ProgramError>,
) -> Result<PathBuf, DatapathError> {
    let path = pins.program(name);
    if path.exists() {
        return Ok(path);
    }
    let mut object = Object::with(name).open(pins)?;
    let program = object
        .program_mut(name)
        .ok_or(DatapathError::UnknownProgram(name))?;
    load(program).map_err(|source| DatapathError::Program {
        name,
        source: Box::new(source),
    })?;
    program.pin(&path).map_err(|source| DatapathError::Pin {
        path: path.clone(),
        source: source.into(),
    })?;
    pins::restrict(&path, 0o600)?;
    Ok(path)
}

/// Makes the maps that are not pinned yet, those of flows for so many, loads the programs and pins both.
pub(crate) fn load_object(pins: &PinTree, max_flows: u32) -> Result<(), DatapathError> {
    pin_all(Object::V4.make(pins, max_flows)?, |name| pins.program(name))?;
    for name in MAP_NAMES {
        pins::restrict(&pins.map(name), 0o640)?;
    }
    Ok(())
}

/// Loads the programs with the maps of a tree, and pins each at the path that `path` gives for its name.
pub(crate) fn programs(pins: &PinTree, path: impl Fn(&str) -> PathBuf) -> Result<(), DatapathError> {
    pin_all(Object::V4.open(pins)?, path)
}

fn pin_all(mut object: Ebpf, path: impl Fn(&str) -> PathBuf) -> Result<(), DatapathError> {
    verify(&mut object, &PROGRAM_NAMES)?;
    pin_programs(&mut object, &PROGRAM_NAMES, path)
}

/// Pins each of the programs at the path that `path` gives for its name. What is there goes.
pub(crate) fn pin_programs(
    object: &mut Ebpf,
    names: &[&'static str],
    path: impl Fn(&str) -> PathBuf,
) -> Result<(), DatapathError> {
    for &name in names {
        let program = object
            .program_mut(name)
            .ok_or(DatapathError::UnknownProgram(name))?;
        let path = path(name);
        pins::unpin(&path)?;
        program.pin(&path).map_err(|source| DatapathError::Pin {
            path: path.clone(),
            source: source.into(),
        })?;
        pins::restrict(&path, 0o600)?;
    }
    Ok(())
}

/// Loads the programs, all at once: the verifier is most of the time that a node's first pod waits for, and each call of it
/// has a CPU of its own.
pub(crate) fn verify(object: &mut Ebpf, names: &[&'static str]) -> Result<(), DatapathError> {
    thread::scope(|scope| {
        let programs = object.programs_mut().filter_map(|(name, program)| {
            let name = *names.iter().find(|known| **known == name)?;
            Some(scope.spawn(move || load_program(name, program)))
        });
        // All are started before the first is waited for.
        let verifying: Vec<_> = programs.collect();
        verifying.into_iter().try_for_each(|program| {
            program
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn load_program(name: &'static str, program: &mut Program) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Program {
        name,
        source: Box::new(source),
    };
    let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
    program.load().map_err(failed)
}

/// Fills what the programs read. Nothing is attached yet.
fn configure(tables: &Tables, uplink: &Uplink, settings: &Settings) -> Result<(), DatapathError> {
    let sysctls = Sysctls::read();
    tables.set_config(&Config {
        node_addr: uplink.addr.octets(),
        uplink_ifindex: uplink.ifindex,
        uplink_mtu: uplink.mtu,
        seed: random()?,
        pod_quota: settings.pod_quota,
        wire_quota: settings.outside_quota,
        range_list: 0,
        timeouts: settings.timeouts(&sysctls),
    })?;
    tables.usage()?.insert([0; 4], Usage::default())?;
    tables.set_balancer(settings.api_server.as_ref())?;
    tables.of::<[u8; 4]>().exchange_ranges(&settings.ranges())?;
    tables.set_ports(&settings.reserved(&sysctls), &[]).map(drop)
}

fn random() -> Result<u32, DatapathError> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| DatapathError::Random(errno.into()))?;
    Ok(u32::from_ne_bytes(bytes))
}
