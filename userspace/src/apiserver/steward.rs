//! Follows the API server through its changes: what was given up drains and is ended, and connections go to backends that
//! are healthy. What it knows stands in a file, so a restart forgets nothing.

use std::{
    net::Ipv4Addr,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    BackendState, Description, Gone, Mode, drain,
    known::{Known, STATE},
};
use crate::{
    datapath::{Datapath, End, now},
    root::Root,
    settings::ApiServer,
};

/// Rounds in which openers are told; after them, whoever is left is not there any more.
const ROUNDS: u32 = 20;

/// Who knows.
#[derive(Debug)]
pub struct Steward {
    root: Root,
    wanted: Option<Description>,
    known: Known,
}

impl Steward {
    /// With what was noted on this node.
    pub fn new(root: &Root) -> Self {
        Self {
            root: root.clone(),
            wanted: None,
            known: Known::noted(root),
        }
    }

    /// Follows another description from here on.
    pub fn follow(&mut self, wanted: Option<&Description>) {
        let before = self.known.clone();
        let (vip, mode) = wanted.map_or((None, Mode::default()), |wanted| (wanted.vip, wanted.mode));
        let drain = wanted.map_or(0, |wanted| wanted.drain_seconds);
        let until = now().saturating_add(drain);
        if let Some(old) = self.known.vip.filter(|old| Some(*old) != vip && wanted.is_some()) {
            self.give_up(End::Address(old), until, false);
        }
        self.known
            .gone
            .retain(|gone| gone.is_backend || gone.is_public || Some(gone.address) != vip);
        let closed: Vec<Ipv4Addr> = match wanted {
            Some(wanted) if wanted.mode == Mode::Private => wanted.public_addresses.clone(),
            _ => Vec::new(),
        };
        self.known
            .gone
            .retain(|gone| !gone.is_public || closed.contains(&gone.address));
        for address in closed {
            self.give_up(End::Address(address), until, true);
        }
        self.follow_backends(wanted, until);
        if (self.known.vip, self.known.mode) != (vip, mode) {
            self.known.changes += u64::from(self.known.vip.is_some() && self.known.vip != vip);
            self.known.changed = Some(epoch());
            tracing::info!(
                vip = vip.map(|vip| vip.to_string()),
                before = self.known.vip.map(|vip| vip.to_string()),
                mode = mode.name(),
                "the API server has changed"
            );
        }
        (self.known.vip, self.known.mode) = (vip, mode);
        self.wanted = wanted.cloned();
        if wanted.is_none() {
            self.known.gone.clear();
        }
        self.note_unless(&before);
    }

    fn follow_backends(&mut self, wanted: Option<&Description>, until: u32) {
        let backends = wanted
            .and_then(|wanted| wanted.backends.clone())
            .unwrap_or_default();
        let removed: Vec<Ipv4Addr> = self.known.backends.keys().copied().collect();
        for backend in removed.into_iter().filter(|backend| !backends.contains(backend)) {
            self.known.backends.remove(&backend);
            self.give_up(End::Backend(backend), until, false);
        }
        for backend in backends {
            // Until a probe says otherwise: an agent that starts refuses nobody.
            self.known
                .backends
                .entry(backend)
                .or_insert_with(|| BackendState {
                    is_healthy: true,
                    since: epoch(),
                    against: 0,
                    fault: None,
                });
        }
        let served: Vec<Ipv4Addr> = self.healthy();
        self.known
            .gone
            .retain(|gone| !gone.is_backend || !served.contains(&gone.address));
    }

    fn give_up(&mut self, end: End, until: u32, is_public: bool) {
        let (address, is_backend) = match end {
            End::Address(address) => (address, false),
            End::Backend(address) => (address, true),
        };
        let is_same = |gone: &&mut Gone| gone.address == address && gone.is_backend == is_backend;
        if self.known.gone.iter_mut().find(is_same).is_none() {
            self.known.gone.push(Gone {
                address,
                is_backend,
                is_public,
                until,
                rounds: 0,
                ended: 0,
                is_over: false,
            });
        }
    }

    /// What the programs have to follow.
    pub fn api_server(&self) -> Option<ApiServer> {
        self.wanted.as_ref().map(|wanted| self.api_server_of(wanted))
    }

    /// What they would have to follow by this description, with what is known.
    pub fn api_server_of(&self, wanted: &Description) -> ApiServer {
        let given_up = self.known.gone.iter().filter(|gone| !gone.is_backend);
        ApiServer {
            backends: wanted.backends.as_ref().map(|_| self.healthy()),
            given_up: given_up.map(|gone| gone.address).collect(),
            ..wanted.at_rest()
        }
    }

    /// What is to be probed.
    pub fn probed(&self) -> Option<&Description> {
        self.wanted.as_ref().filter(|wanted| wanted.backends.is_some())
    }

    /// What is known.
    pub fn known(&self) -> &Known {
        &self.known
    }

    fn healthy(&self) -> Vec<Ipv4Addr> {
        let healthy = self.known.backends.iter().filter(|(_, state)| state.is_healthy);
        healthy.map(|(address, _)| *address).collect()
    }

    /// Takes the results of a round of probes. Returns whether the programs have to follow other backends.
    pub fn observe(&mut self, results: &[(Ipv4Addr, Result<(), String>)]) -> bool {
        let Some(wanted) = self.wanted.clone() else {
            return false;
        };
        let before = self.known.clone();
        for (backend, result) in results {
            let Some(state) = self.known.backends.get_mut(backend) else {
                continue;
            };
            state.fault = result.as_ref().err().cloned();
            state.against = if state.is_healthy == result.is_ok() {
                0
            } else {
                state.against + 1
            };
            let needed = if state.is_healthy {
                wanted.probe.unhealthy_after
            } else {
                wanted.probe.healthy_after
            };
            if state.against < needed {
                continue;
            }
            state.is_healthy = result.is_ok();
            (state.since, state.against) = (epoch(), 0);
            let fault = state.fault.clone();
            if state.is_healthy {
                tracing::info!(%backend, "the backend is healthy");
                self.known
                    .gone
                    .retain(|gone| !gone.is_backend || gone.address != *backend);
            } else {
                tracing::warn!(%backend, fault, "the backend is not healthy");
                self.give_up(
                    End::Backend(*backend),
                    now().saturating_add(wanted.drain_seconds),
                    false,
                );
            }
        }
        self.note_unless(&before);
        let is_healthy = |known: &Known| {
            known
                .backends
                .values()
                .map(|state| state.is_healthy)
                .collect::<Vec<_>>()
        };
        is_healthy(&before) != is_healthy(&self.known)
    }

    /// Whether [`Self::look`] has something to do.
    pub fn is_draining(&self) -> bool {
        self.known.gone.iter().any(|gone| !gone.is_over)
    }

    /// Whether something has drained, or was refused, for long enough.
    pub fn is_due(&self) -> bool {
        let now = now();
        self.known
            .gone
            .iter()
            .any(|gone| !gone.is_over && gone.until <= now || !gone.is_kept(now))
    }

    /// Ends what has drained for long enough. Returns whether the programs have to follow something else.
    pub fn look(&mut self, datapath: Option<&Datapath>) -> bool {
        let (before, now) = (self.known.clone(), now());
        for gone in self
            .known
            .gone
            .iter_mut()
            .filter(|gone| !gone.is_over && gone.until <= now)
        {
            let Some(datapath) = datapath else {
                gone.is_over = true;
                continue;
            };
            gone.rounds += 1;
            match drain::end(datapath, gone.end(), gone.rounds) {
                Ok(found) => {
                    gone.ended = gone.ended.max(found);
                    gone.is_over = found == 0 || gone.rounds >= ROUNDS;
                }
                Err(error) => {
                    tracing::error!(%error, address = %gone.address, "cannot end the connections to what is gone");
                    gone.is_over = gone.rounds >= ROUNDS;
                }
            }
            if gone.is_over {
                tracing::info!(address = %gone.address, connections = gone.ended, "its connections have ended");
            }
        }
        self.known.gone.retain(|gone| gone.is_kept(now));
        self.note_unless(&before);
        before.gone.len() != self.known.gone.len()
    }

    fn note_unless(&self, before: &Known) {
        if *before != self.known
            && let Err(error) = self.known.note(&self.root)
        {
            tracing::warn!(%error, path = STATE, "cannot note what is known of the API server");
        }
    }
}

fn epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::{Document, known::REFUSED};

    struct Scene {
        steward: Steward,
        _directory: tempfile::TempDir,
    }

    fn scene() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        Scene {
            steward: Steward::new(&Root::new(directory.path())),
            _directory: directory,
        }
    }

    fn described(text: &str) -> Description {
        serde_json::from_str::<Document>(text).unwrap().check().unwrap()
    }

    fn given_up(steward: &Steward) -> Vec<String> {
        let server = steward.api_server().unwrap();
        server.given_up.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_that_is_left_is_given_up_until_nobody_has_it_any_more_and_not_if_it_comes_back() {
        let Scene {
            mut steward,
            _directory,
        } = scene();
        let with = |vip: &str| described(&format!(r#"{{"vip": "{vip}", "drainSeconds": 0}}"#));
        steward.follow(Some(&with("10.226.0.4")));
        assert!(given_up(&steward).is_empty());
        steward.follow(Some(&with("10.226.0.5")));
        assert_eq!(given_up(&steward), ["10.226.0.4"]);
        steward.follow(Some(&with("10.226.0.4")));
        assert_eq!(given_up(&steward), ["10.226.0.5"]);
        assert!(steward.is_draining());
        assert!(!steward.look(None) && !steward.is_draining());
        assert_eq!(given_up(&steward), ["10.226.0.5"], "resolvers may have it");
        assert!(!steward.is_due());
        steward.known.gone[0].until = now().saturating_sub(REFUSED);
        assert!(steward.is_due() && steward.look(None));
        assert!(given_up(&steward).is_empty() && !steward.is_due());
        assert_eq!(steward.known().changes, 2);
        let again = Steward::new(&steward.root);
        assert_eq!(again.known(), steward.known(), "a restart forgets nothing");
    }

    #[test]
    fn the_public_endpoint_is_given_up_for_as_long_as_there_is_none() {
        let Scene {
            mut steward,
            _directory,
        } = scene();
        let with = |mode: &str| {
            described(&format!(
                r#"{{"vip": "10.226.0.4", "mode": "{mode}", "publicAddresses": ["203.0.113.7"], "drainSeconds": 0}}"#
            ))
        };
        steward.follow(Some(&with("public")));
        assert!(given_up(&steward).is_empty());
        steward.follow(Some(&with("private")));
        assert_eq!(given_up(&steward), ["203.0.113.7"]);
        assert!(!steward.look(None) && !steward.is_draining());
        assert_eq!(given_up(&steward), ["203.0.113.7"]);
        steward.follow(Some(&with("public")));
        assert!(given_up(&steward).is_empty());
    }

    #[test]
    fn a_backend_has_to_fail_and_to_succeed_as_often_as_is_asked_for() {
        let Scene {
            mut steward,
            _directory,
        } = scene();
        steward.follow(Some(&described(
            r#"{"vip": "10.226.0.4", "backends": ["10.226.0.5", "10.226.0.6"],
                "probe": {"unhealthyAfter": 2, "healthyAfter": 2}}"#,
        )));
        let served = |steward: &Steward| steward.api_server().unwrap().backends.unwrap().len();
        let backend: Ipv4Addr = [10, 226, 0, 5].into();
        let fails = [(backend, Err("no".to_owned()))];
        assert_eq!((steward.observe(&fails), served(&steward)), (false, 2));
        assert!(!steward.observe(&[(backend, Ok(()))]));
        assert!(!steward.observe(&fails), "a success in between");
        assert_eq!((steward.observe(&fails), served(&steward)), (true, 1));
        assert!(steward.is_draining());
        assert!(!steward.observe(&[(backend, Ok(()))]));
        assert_eq!(
            (steward.observe(&[(backend, Ok(()))]), served(&steward)),
            (true, 2)
        );
        assert!(!steward.is_draining(), "its connections may stay");
    }
}
