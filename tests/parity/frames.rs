//! Frames on their way into the lanes, and out of them.

use std::ops::Range;

use crate::{canonical::cause, packet::Spec};

/// A frame that came out, and where: at the wire, or the number of the pod from 1 on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output<'a> {
    pub(crate) point: usize,
    /// Identification of the packet that led to it.
    pub(crate) cause: u16,
    pub(crate) bytes: &'a [u8],
}

/// Frames that came out, in one piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    bytes: Vec<u8>,
    at: Vec<(usize, Range<usize>)>,
}

impl Outputs {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.at.clear();
    }

    pub(crate) fn push(&mut self, point: usize, frame: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        self.at.push((point, start..self.bytes.len()));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Output<'_>> {
        self.at.iter().map(|(point, range)| {
            let bytes = &self.bytes[range.clone()];
            Output {
                point: *point,
                cause: cause(bytes),
                bytes,
            }
        })
    }
}

/// Frames for both lanes, in one piece of memory. What has no port of the lane's in it is the same for both.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    bytes: Vec<u8>,
    at: [Vec<(usize, Range<usize>)>; 2],
}

impl Inputs {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.at.iter_mut().for_each(Vec::clear);
    }

    /// Adds a frame that enters at a point. `None`, and nothing is added, if it needs ports that the lanes have not given.
    pub(crate) fn push(
        &mut self,
        point: usize,
        macs: [[u8; 6]; 2],
        (spec, id): (&Spec, u16),
        ports: Option<[u16; 2]>,
    ) -> Option<()> {
        let mut render = |port| {
            let start = self.bytes.len();
            spec.write(&mut self.bytes, macs, id, port)?;
            Some(start..self.bytes.len())
        };
        let ranges = match ports {
            Some([left, right]) if left != right => [render(Some(left))?, render(Some(right))?],
            _ => {
                let both = render(ports.map(|ports| ports[0]))?;
                [both.clone(), both]
            }
        };
        for (at, range) in self.at.iter_mut().zip(ranges) {
            at.push((point, range));
        }
        Some(())
    }

    /// For lane `lane`, those that enter at a point.
    pub(crate) fn of(&self, lane: usize, point: usize) -> impl Iterator<Item = &[u8]> {
        let here = self.at[lane].iter().filter(move |(at, _)| *at == point);
        here.map(|(_, range)| &self.bytes[range.clone()])
    }
}
