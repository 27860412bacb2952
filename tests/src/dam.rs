//! A link that holds what is sent over it and lets it go in one go, as a network card hands over a batch.

use anyhow::Result;

use crate::netns::Netns;

/// A queue in front of an interface.
#[derive(Debug)]
pub struct Dam<'a> {
    ns: &'a Netns,
    interface: &'a str,
}

impl<'a> Dam<'a> {
    /// Puts a dam in front of an interface; it holds.
    pub fn new(ns: &'a Netns, interface: &'a str) -> Result<Self> {
        let dam = Self { ns, interface };
        dam.tc("add", HOLD)?;
        Ok(dam)
    }

    /// From here on the link lets one frame of the largest size through and then, for a second, nothing of more than 125 bytes in
    /// all.
    pub fn hold(&self) -> Result<()> {
        self.tc("change", HOLD)
    }

    /// What is held goes with the next frame.
    pub fn let_go(&self) -> Result<()> {
        self.tc("change", "rate 10gbit burst 10mb")
    }

    fn tc(&self, verb: &str, flow: &str) -> Result<()> {
        let Self { ns, interface } = *self;
        let args = format!("qdisc {verb} dev {interface} root handle 1: tbf {flow} limit 1mb");
        ns.output("tc", &args.split_whitespace().collect::<Vec<_>>())
            .map(drop)
    }
}

const HOLD: &str = "rate 1kbit burst 1520";
