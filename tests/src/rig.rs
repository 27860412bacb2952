//! One node in its surroundings, watched.

use anyhow::Result;

use crate::{
    fabric::{self, Fabric},
    frame::Frame,
    leak::LeakWatch,
    node::{Datapath, Node, Pod},
    rules,
};

/// A node, the fabric around it, and the watch on the wire between them.
///
/// Rigs share nothing: not a namespace, a file, a pin or an address space. Dropped, a rig fails the test if a packet leaked.
#[derive(Debug)]
pub struct Rig {
    /// The node.
    pub node: Node,
    /// What lies around it.
    pub fabric: Fabric,
    watch: Option<LeakWatch>,
}

impl Rig {
    /// A node that runs Causeway, with twenty addresses for pods.
    pub fn causeway() -> Result<Self> {
        Self::with(Datapath::Causeway, 20)
    }

    /// A node of any kind, with `pool_size` addresses for pods.
    pub fn with(datapath: Datapath, pool_size: u8) -> Result<Self> {
        let mut rig = Self::unwatched(datapath, pool_size)?;
        rules::count_forwarded(&rig.node.ns)?;
        // The bridge alone sends frames with the pods' MACs; ebtables rules hide that on the real thing.
        if datapath != Datapath::BridgeMasquerade {
            let router = &rig.fabric.router;
            rig.watch = Some(LeakWatch::start(
                router,
                "node",
                fabric::NODE,
                rig.node.mac()?,
                fabric::PARTNER,
            )?);
        }
        Ok(rig)
    }

    /// A node without the watch and the count of forwarded packets, which cost time for each packet: for measuring only.
    pub fn unwatched(datapath: Datapath, pool_size: u8) -> Result<Self> {
        let fabric = Fabric::new()?;
        let node = Node::new(&fabric, datapath, pool_size)?;
        Ok(Self {
            node,
            fabric,
            watch: None,
        })
    }

    /// Adds a pod.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.node.add(name)
    }

    /// What has left the node with an address or a MAC that is not the node's where it should have been.
    pub fn leaks(&self) -> Vec<Frame> {
        self.watch.as_ref().map(LeakWatch::leaks).unwrap_or_default()
    }

    /// Ends the watch and returns what leaked; the rig no longer fails for it.
    pub fn end_watch(&mut self) -> Vec<Frame> {
        let leaks = self.leaks();
        self.watch = None;
        leaks
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let leaks = self.leaks();
        assert!(
            leaks.is_empty() || std::thread::panicking(),
            "leaked onto the wire: {leaks:#?}"
        );
    }
}
