//! Probes the API server's backends, beside everything else: a probe waits for whom it asks.

use std::{net::Ipv4Addr, time::Duration};

use causeway::apiserver::{Description, probe};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};

/// Between two looks at what drains.
pub(super) const PERIOD: Duration = Duration::from_millis(250);

/// What a round of probes found.
pub(super) type Results = Vec<(Ipv4Addr, Result<(), String>)>;

/// The probing of one description, if there is one.
#[derive(Default)]
pub(super) struct Probes(Option<Round>);

struct Round {
    of: Description,
    results: mpsc::Receiver<Results>,
    task: JoinHandle<()>,
}

impl Drop for Round {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probes {
    /// Probes the backends of this description from here on.
    pub(super) fn follow(&mut self, wanted: Option<&Description>) {
        if self.0.as_ref().map(|round| &round.of) == wanted {
            return;
        }
        self.0 = wanted.map(|wanted| {
            let (sender, results) = mpsc::channel(1);
            Round {
                of: wanted.clone(),
                results,
                task: tokio::spawn(rounds(wanted.clone(), sender)),
            }
        });
    }

    /// Waits for the results of the next round.
    pub(super) async fn next(&mut self) -> Results {
        match &mut self.0 {
            Some(round) => match round.results.recv().await {
                Some(results) => results,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }
}

async fn rounds(server: Description, sender: mpsc::Sender<Results>) {
    let mut clock = interval(Duration::from_secs(server.probe.interval_seconds.into()));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let mut probes = JoinSet::new();
        for backend in server.backends.iter().flatten().copied() {
            let server = server.clone();
            probes.spawn(async move { (backend, probe(&server, backend).await) });
        }
        if sender.send(probes.join_all().await).await.is_err() {
            return;
        }
    }
}
