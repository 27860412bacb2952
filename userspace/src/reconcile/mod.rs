//! Keeps a node right: looks at everything that Causeway has made, and puts right what is not as it should be.
//!
//! A [`Keeper`] makes one pass after the other. A pass reads, compares and mends, and each item that cannot be mended
//! hinders none of the others. It waits for nobody: what a CNI call is at work on is left to that call.

mod pods;
mod state_files;

use std::{
    collections::BTreeMap,
    mem,
    net::IpAddr,
    time::{Duration, Instant},
};

use causeway_common::maps::PodEntry;

use self::state_files::StateFiles;
use crate::{
    attachments::orphans,
    datapath::{Datapath, DatapathError, Hold, HostPort, Occasion, PodMaps, Swept},
    endpoints,
    exact_rule::{ExactRule, ExactRuleError, Rule},
    leases::Lease,
    links::Netlink,
    node::{self, Forwarding, NodeError, Sysctls, Uplink},
    root::Root,
    settings::Settings,
};

/// How long something must have been without an owner before it is collected. Its owner may be on the way.
const GRACE: Duration = Duration::from_mins(1);

/// How closely a pass looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// At what nobody tells of: pins, maps, links of programs. At everything if something of that has changed.
    Quick,
    /// At everything.
    Whole,
}

/// What a pass found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Whether a datapath is there.
    pub loaded: bool,
    /// What was put right, each item in words.
    pub mended: Vec<String>,
    /// What is wrong and could not be put right.
    pub faults: Vec<String>,
    /// Addresses whose pods were gone.
    pub collected: usize,
    /// What the sweep found, if one was due.
    pub swept: Option<Swept>,
}

/// The memory of the one who keeps a node right.
#[derive(Debug)]
pub struct Keeper {
    root: Root,
    settings: Settings,
    exact_rule: ExactRule,
    /// What the kernel is to masquerade, by the last whole pass that could tell.
    rule: Option<Rule>,
    hold: Hold,
    /// The datapath, as long as its pins do not change.
    opened: Option<Datapath>,
    forwarding: Forwarding,
    /// As they were at the last whole pass.
    sysctls: Sysctls,
    files: StateFiles,
    /// Pods as they were last seen served: what the state files do not say of them is taken from here.
    served: BTreeMap<IpAddr, PodEntry>,
    /// Since when something looks as if it had no owner.
    suspects: BTreeMap<String, Instant>,
    /// When the first of them will have been one for long enough.
    due: Option<Instant>,
    /// What was wrong with pods then.
    faults: Vec<String>,
    /// Their ports of the node then.
    host_ports: Vec<HostPort>,
    /// What the programs knew of the pods all through the last whole pass.
    known: Option<PodMaps>,
    /// Whether the datapath has been there: who takes it away then means it.
    was_loaded: bool,
}

impl Keeper {
    /// The keeper of a node, which follows these settings.
    pub fn new(root: &Root, settings: Settings) -> Self {
        Self {
            root: root.clone(),
            settings,
            exact_rule: ExactRule::default(),
            rule: None,
            hold: Hold::default(),
            opened: None,
            forwarding: Forwarding::default(),
            sysctls: Sysctls::read(),
            files: StateFiles::new(root),
            served: BTreeMap::new(),
            faults: Vec::new(),
            host_ports: Vec::new(),
            known: None,
            suspects: BTreeMap::new(),
            due: None,
            was_loaded: false,
        }
    }

    /// Follows other settings from here on. The programs know them when this returns, if the datapath is there.
    /// Returns the maps that were changed.
    pub fn follow(&mut self, settings: Settings) -> Result<Vec<&'static str>, DatapathError> {
        let before = mem::replace(&mut self.settings, settings).max_flows;
        let datapath = Datapath::open(&self.root)?;
        if let Some(datapath) = datapath.as_ref().filter(|_| self.settings.max_flows != before) {
            let there = datapath.flow_entries()? / 2;
            tracing::warn!(
                maxFlows = self.settings.max_flows,
                there,
                "the table of flows has the size that it was made with until the datapath is loaded anew"
            );
        }
        let applied = datapath
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), |datapath| datapath.apply(&self.settings));
        // One that cannot be kept is a fault of every pass.
        self.keep_exact_rule(datapath.as_ref(), Depth::Whole).ok();
        applied
    }

    /// Sees to the kernel's rule. Returns whether somebody else had changed it.
    fn keep_exact_rule(&mut self, datapath: Option<&Datapath>, depth: Depth) -> Result<bool, KeepError> {
        if depth == Depth::Whole || self.rule.is_none() {
            let mut netlink = Netlink::new()?;
            let uplink = match self.uplink(&mut netlink, datapath) {
                Ok(uplink) => Some(uplink.ifindex),
                Err(_) if datapath.is_none() => None,
                // The pass has said so. What there is stays.
                Err(_) => return Ok(false),
            };
            let ways = netlink.ways_past(uplink)?;
            self.rule = Some(Rule::wanted(&self.settings, uplink, ways));
        }
        let (kept, root) = (&mut self.exact_rule, &self.root);
        let Some(rule) = self.rule.clone().filter(|rule| !rule.is_empty()) else {
            return Ok(kept.remove(root).map(|()| false)?);
        };
        if kept.is_kept(&rule) {
            return Ok(false);
        }
        // It goes with the datapath that somebody has unloaded, and pods alone need none before there is one.
        if self.settings.exact_rule && !self.was_loaded {
            return Ok(kept.make(root, rule)?);
        }
        match Datapath::while_loaded(root, || kept.make(root, rule))? {
            Some(made) => Ok(made?),
            None => Ok(kept.remove(root).map(|()| false)?),
        }
    }

    /// Looks once.
    pub fn pass(&mut self, depth: Depth) -> Pass {
        let mut notes = Pass::default();
        let files_changed = self.files.check(&mut notes);
        let restored = self.hold.refresh(&self.root);
        for path in notes.unless_failed(restored).unwrap_or_default() {
            notes.note_mended(format!("{} was not pinned", path.display()));
        }
        let datapath = self.datapath(&mut notes);
        let datapath = notes.unless_failed(datapath).flatten();
        let kept = self.keep_exact_rule(datapath.as_ref(), depth);
        if notes.unless_failed(kept) == Some(true) {
            notes.note_mended("the kernel's own rule was not as it has to be".to_owned());
        }
        if let Some(datapath) = datapath {
            // What was loaded or attached by this pass is to be held from here on.
            notes.unless_failed(self.hold.refresh(&self.root));
            let whole = depth == Depth::Whole || files_changed || self.is_due() || !self.is_quiet(&datapath);
            let applied = if whole {
                self.sysctls = Sysctls::read();
                datapath.apply_over(&self.settings, &self.sysctls)
            } else {
                datapath.apply_choice_over(&self.settings, &self.sysctls)
            };
            for map in notes.unless_failed(applied).unwrap_or_default() {
                notes.note_mended(format!("{map} was not as configured"));
            }
            let mended = datapath.mend_ipv6();
            for item in notes.unless_failed(mended).unwrap_or_default() {
                notes.note_mended(item);
            }
            if whole {
                self.keep_pods(&datapath, &mut notes);
                notes.collected = self.collect();
                self.due = self.suspects.values().filter_map(|since| to_come(*since)).min();
            } else {
                notes.faults.extend_from_slice(&self.faults);
            }
            notes.loaded = true;
            let swept = datapath.sweep_if_needed(Occasion::Del);
            notes.swept = notes.unless_failed(swept).flatten();
        }
        notes
    }

    /// Whether the programs know the pods as they did after the last whole pass, and are attached.
    fn is_quiet(&self, datapath: &Datapath) -> bool {
        datapath.pod_maps().is_ok_and(|maps| Some(maps) == self.known)
            && self.hold.is_whole()
            && datapath
                .has_reserved(&self.settings, &self.sysctls, &self.host_ports)
                .is_ok_and(|has| has)
    }

    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// The datapath, attached to the uplink as it is. Where none is, the first pod loads it, and one that somebody has
    /// unloaded stays so until then; but pods that have lost theirs are served again.
    fn datapath(&mut self, notes: &mut Pass) -> Result<Option<Datapath>, KeepError> {
        let mut netlink = Netlink::new().map_err(NodeError::from)?;
        let before = self.open()?;
        if before.is_none() && (self.was_loaded || !self.has_pods(&mut netlink)?) {
            return Ok(None);
        }
        let uplink = self.uplink(&mut netlink, before.as_ref())?;
        if self.forwarding.enable(&self.root)? && before.is_some() {
            notes.note_mended("net.ipv4.ip_forward was 0".to_owned());
        }
        if let Some(datapath) = &before
            && datapath.serves(&uplink)?
        {
            self.was_loaded = true;
            return Ok(before);
        }
        let missing = before.as_ref().map(Datapath::inspect_uplink).transpose()?;
        let datapath = Datapath::ensure(&self.root, &uplink, true)?;
        for item in missing.into_iter().flatten() {
            notes.note_mended(item);
        }
        self.was_loaded = true;
        Ok(Some(datapath))
    }

    fn open(&mut self) -> Result<Option<Datapath>, DatapathError> {
        if self.opened.is_none() || self.hold.is_outdated(&self.root) {
            self.opened = Datapath::open(&self.root)?;
        }
        Ok(self.opened.clone())
    }

    /// Whether a pod is there that is not the incumbent's.
    fn has_pods(&self, netlink: &mut Netlink) -> Result<bool, KeepError> {
        let theirs = pods::of_incumbent(&self.root)?;
        for (_, endpoint) in endpoints::readable(&self.root)?.endpoints() {
            if !theirs.contains(&endpoint.container_id) && netlink.link(&endpoint.host_if_name)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The one that was chosen; else the one in use, as long as it is there; else that of the default route.
    fn uplink(&self, netlink: &mut Netlink, datapath: Option<&Datapath>) -> Result<Uplink, KeepError> {
        let chosen = self.settings.uplink.as_deref();
        if let Some(datapath) = datapath {
            let config = datapath.config()?;
            let same = node::same_uplink(netlink, config.uplink_ifindex, config.node_addr.into())?;
            let suits = |uplink: &Uplink| chosen.is_none_or(|name| uplink.name == name);
            if let Some(uplink) = same.filter(suits) {
                return Ok(uplink);
            }
        }
        Ok(node::find_uplink(netlink, chosen, None)?)
    }

    /// Ends attachments whose interface has been gone for a while.
    fn collect(&mut self) -> usize {
        let suspects = &mut self.suspects;
        let mut seen = Vec::new();
        let collected = orphans::collect(&self.root, |lease: &Lease| {
            let name = format!("lease {}", lease.held.address);
            let is_due = is_overdue(suspects, &name);
            seen.push(name);
            is_due
        });
        suspects.retain(|name, _| !name.starts_with("lease ") || seen.contains(name));
        collected
    }
}

/// Notes a suspect. Returns whether it has been one for long enough.
fn is_overdue(suspects: &mut BTreeMap<String, Instant>, name: &str) -> bool {
    let since = suspects.entry(name.to_owned()).or_insert_with(Instant::now);
    since.elapsed() >= GRACE
}

/// When what has been a suspect since then will have been one for long enough; `None` if it has been.
fn to_come(since: Instant) -> Option<Instant> {
    let due = since + GRACE;
    (due > Instant::now()).then_some(due)
}

impl Pass {
    fn note_mended(&mut self, item: String) {
        tracing::warn!(item, "put right");
        self.mended.push(item);
    }

    fn unless_failed<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.faults.push(error.to_string())).ok()
    }
}

/// Why a part of a pass was given up.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    ExactRule(#[from] ExactRuleError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Link(#[from] crate::links::LinkError),
    #[error(transparent)]
    Endpoints(#[from] endpoints::EndpointsError),
    #[error(transparent)]
    Store(#[from] crate::ipam::store::StoreError),
    #[error("the network namespace {path} of container {container} cannot be opened: {source}")]
    Netns {
        path: String,
        container: String,
        source: std::io::Error,
    },
}
