//! One sweep over a table: read all of it, find what is over, look again, delete.
//!
//! Reading takes a system call for thousands of entries and a hash for each. Only entries that are over are then looked
//! up one by one, because some time has passed since they were read: the decision is made on what is there then, a few
//! at a time, and they are deleted at once.

use causeway_common::{
    flow::{Nat, State},
    lifetime::Timeouts,
};

use super::{
    super::{
        DatapathError,
        tables::{Entry, Key, Table},
    },
    Swept,
    peers::{Found, Noted, Peers, Print, Printer},
};

/// How many entries are decided before they are deleted. Larger would save no time, and make the moment longer in which
/// a packet goes unnoticed.
const AT_ONCE: usize = 128;

type Flows = Table<Key, Entry>;

/// Forgets what is over in `flows` at `now`.
pub(super) fn sweep(flows: &mut Flows, timeouts: &Timeouts, now: u32) -> Result<Swept, DatapathError> {
    let scan = Scan::read(flows, timeouts, now)?;
    scan.settle(flows, timeouts, now)
}

/// What was read.
struct Scan {
    /// Every entry.
    noted: Vec<Noted>,
    /// Those that have expired.
    expired: Vec<Candidate>,
}

/// An entry that has expired by itself.
struct Candidate {
    key: Key,
    print: Print,
    /// `None` for an offer, which is judged without.
    peer: Option<Print>,
}

impl Scan {
    fn read(flows: &Flows, timeouts: &Timeouts, now: u32) -> Result<Self, DatapathError> {
        let printer = Printer::new();
        let mut scan = Self {
            noted: Vec::new(),
            expired: Vec::new(),
        };
        flows.for_each(|key, entry| {
            let expired = timeouts.expired(&entry, key.protocol, entry.last_seen, now);
            let print = printer.of(&key);
            let is_offer = entry.state == State::OFFERED;
            scan.noted.push(print.noting(match (expired, is_offer) {
                (false, _) => Found::Alive,
                (true, false) => Found::Expired,
                (true, true) => Found::ExpiredOffer,
            }));
            if expired {
                scan.expired.push(Candidate {
                    key,
                    print,
                    peer: (!is_offer).then(|| printer.of(&entry.peer_key(&key))),
                });
            }
        })?;
        Ok(scan)
    }

    /// Looks at the candidates again and deletes those that are over still.
    fn settle(self, flows: &mut Flows, timeouts: &Timeouts, now: u32) -> Result<Swept, DatapathError> {
        let mut swept = Swept {
            scanned: self.noted.len(),
            ..Swept::default()
        };
        let peers = self.peers();
        let mut over = Vec::with_capacity(AT_ONCE + 2);
        for candidate in &self.expired {
            match candidate.peer.map(|peer| (peers.found(peer), peer)) {
                Some((Found::Alive, _)) => {
                    swept.pairs_kept_by_peer += 1;
                    continue;
                }
                // A pair is decided once, by the one half. An entry whose peer belongs to another has an even chance with
                // each sweep, since the prints are others each time.
                Some((Found::Expired, peer)) if peer < candidate.print => continue,
                _ => {}
            }
            if !decide(flows, &candidate.key, timeouts, now, &mut over)? {
                swept.revived += 1;
            }
            if over.len() >= AT_ONCE {
                swept.deleted += flows.remove_all(&over)?;
                over.clear();
            }
        }
        swept.deleted += flows.remove_all(&over)?;
        Ok(swept)
    }

    fn peers(&self) -> Peers {
        let wanted = || self.expired.iter().filter_map(|candidate| candidate.peer);
        let mut peers = Peers::wanted(self.expired.len(), wanted());
        if !self.expired.is_empty() {
            for entry in &self.noted {
                peers.note(*entry);
            }
        }
        peers
    }
}

/// Adds to `over` the key, and that of its peer if they are halves of one flow, unless a packet came meanwhile. Returns
/// false if one came.
fn decide(
    flows: &Flows,
    key: &Key,
    timeouts: &Timeouts,
    now: u32,
    over: &mut Vec<Key>,
) -> Result<bool, DatapathError> {
    let Some(entry) = flows.get(key)? else {
        return Ok(true);
    };
    if entry.state == State::OFFERED {
        let goes = timeouts.forgets(key.protocol, &entry, None, now);
        over.extend(goes.then_some(*key));
        return Ok(goes);
    }
    let peer_key = entry.peer_key(key);
    let peer = flows.get(&peer_key)?;
    if !timeouts.forgets(key.protocol, &entry, peer.as_ref(), now) {
        return Ok(false);
    }
    let halves = peer.is_some_and(|peer| peer.state != State::OFFERED && peer.peer_key(&peer_key) == *key);
    match (halves, entry.nat) {
        (false, _) => over.push(*key),
        // The half that holds the port goes first.
        (true, Nat::SOURCE) => over.extend([peer_key, *key]),
        (true, _) => over.extend([*key, peer_key]),
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
