//! `causeway agent`: keeps the node right for as long as it runs. Pods and packets do without it.
//!
//! One thread waits for everything (configuration, interfaces, state files, the clock, who asks); one pass at a time runs
//! beside it and does all the work ([`causeway::reconcile`]).

mod apiserver;
mod events;
mod log;
mod metrics;
mod process;
mod server;
mod state;
mod work;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use causeway::{
    datapath::{Datapath, Upgraded},
    durable::{Lock, LockError},
    reconcile::Depth,
    root::Root,
};
use clap::Args;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep_until},
};

pub(crate) use self::server::SOCKET;
use self::{
    events::{Events, Trigger},
    state::Shared,
    work::Work,
};

/// Between two passes when nothing seems to happen: what makes no event is found after this time.
const PERIOD: Duration = Duration::from_secs(4);
/// Every how many of them one looks at everything, in case an event was lost: every two minutes.
const WHOLE: u32 = 30;
/// Events that come together are looked at together.
const QUIET: Duration = Duration::from_millis(30);
/// There is one agent.
const LOCK: &str = "/run/causeway/agent.lock";

/// How the agent runs.
#[derive(Args)]
pub(crate) struct Options {
    /// Lines of the log: text or json
    #[arg(long, value_enum, default_value_t = log::Format::Text, hide_possible_values = true)]
    log_format: log::Format,
}

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// Another one runs.
    #[error("another agent is running: {0}")]
    Running(#[from] LockError),
    /// What it needs of the system was refused.
    #[error("cannot {action}: {source}")]
    Start { action: &'static str, source: io::Error },
}

/// Runs until it is told to end (SIGTERM, SIGINT). The datapath stays.
pub(crate) fn run(root: &Root, options: &Options) -> Result<(), AgentError> {
    log::start(options.log_format);
    let started = Instant::now();
    allow_descriptors();
    keep_memory_small();
    let _alone = Lock::acquire(&root.path(LOCK), Duration::from_secs(2))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_mins(1))
        .build()
        .map_err(failed("start"))?;
    runtime.block_on(serve(root, started))
}

/// Two links a pod are held open, and the ordinary limit is a thousand.
fn allow_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// glibc gives each thread a heap of its own, of megabytes, and gives little back: for three threads that hardly ever work
/// at the same time that is most of what the agent would take.
fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two integers; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// What a look at everything took, a sweep or an answer, is not needed before the next one.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes an integer and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> AgentError {
    move |source| AgentError::Start { action, source }
}

async fn serve(root: &Root, started: Instant) -> Result<(), AgentError> {
    let mut end = signal(SignalKind::terminate()).map_err(failed("wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("wait for signals"))?;
    let mut reload = signal(SignalKind::hangup()).map_err(failed("wait for signals"))?;
    let shared = Arc::new(Shared::new(root));
    let mut events = Events::watch(root).map_err(failed("watch files and interfaces"))?;
    let work = Work::begin(root, &shared);
    upgrade(root);
    let mut agent = Agent {
        root: root.clone(),
        work: Some(work),
        probes: apiserver::Probes::default(),
        shared: Arc::clone(&shared),
    };
    agent.pass(Depth::Whole).await;
    let mut servers = server::Servers::start(&shared).map_err(failed("listen"))?;
    tell_systemd(&[NotifyState::Ready]);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        milliseconds = started.elapsed().as_millis() as u64,
        "the agent is ready"
    );
    let mut clock = interval(PERIOD);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock.reset();
    let mut quick = 0_u32;
    let mut steward_clock = interval(apiserver::PERIOD);
    steward_clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        agent.probe();
        let trigger = tokio::select! {
            _ = steward_clock.tick(), if agent.is_draining() => {
                agent.look_at_api_server().await;
                continue;
            }
            results = agent.probes.next() => {
                agent.observe(results).await;
                continue;
            }
            _ = clock.tick() => Trigger::Clock,
            trigger = events.next() => trigger,
            _ = reload.recv() => Trigger::Configuration,
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
        };
        let asked = match trigger {
            Trigger::Clock => trigger,
            _ => gather(&mut events, trigger).await,
        };
        if asked == Trigger::Configuration {
            agent.reload().await;
            servers.follow(&shared);
        }
        quick = if asked == Trigger::Clock { quick + 1 } else { 0 };
        let depth = if asked == Trigger::Clock && !quick.is_multiple_of(WHOLE) {
            Depth::Quick
        } else {
            Depth::Whole
        };
        agent.pass(depth).await;
        // What has been refused for long enough is found here.
        agent.look_at_api_server().await;
        tell_systemd(&[NotifyState::Watchdog]);
    }
    tell_systemd(&[NotifyState::Stopping]);
    tracing::info!("the agent ends; the datapath goes on");
    servers.end();
    Ok(())
}

/// What else comes at the same time. A changed configuration is never waited for: it says more than the rest.
async fn gather(events: &mut Events, first: Trigger) -> Trigger {
    let mut asked = first;
    let until = tokio::time::Instant::now() + QUIET;
    while asked != Trigger::Configuration {
        tokio::select! {
            () = sleep_until(until) => break,
            trigger = events.next() => asked = asked.max(trigger),
        }
    }
    asked
}

/// Programs of another build are exchanged before anything else is looked at.
fn upgrade(root: &Root) {
    match Datapath::upgrade(root, false) {
        Ok(Upgraded::Exchanged { .. } | Upgraded::UpToDate | Upgraded::NotLoaded) => {}
        Err(error) => tracing::error!(%error, "the programs of before stay"),
    }
}

/// Where there is no systemd, nobody is told.
fn tell_systemd(states: &[NotifyState<'_>]) {
    sd_notify::notify(states).ok();
}

struct Agent {
    root: Root,
    /// Away while it works.
    work: Option<Work>,
    probes: apiserver::Probes,
    shared: Arc<Shared>,
}

impl Agent {
    /// Does something with the work, on a thread that may wait.
    async fn with_work(&mut self, task: impl FnOnce(&mut Work, &Root, &Shared) + Send + 'static) {
        let Some(mut work) = self.work.take() else {
            return;
        };
        let (root, shared) = (self.root.clone(), Arc::clone(&self.shared));
        let done = spawn_blocking(move || {
            task(&mut work, &root, &shared);
            shared.note_api_server(work.steward.known());
            work
        });
        // What was lost with its thread is replaced by one without memory.
        self.work = done
            .await
            .ok()
            .or_else(|| Some(Work::begin(&self.root, &self.shared)));
    }

    async fn pass(&mut self, depth: Depth) {
        self.with_work(move |work, _, shared| {
            let started = Instant::now();
            let pass = work.keeper.pass(depth);
            shared.note_pass(&pass, started.elapsed());
            if depth == Depth::Whole || pass.swept.is_some() {
                give_memory_back();
            }
        })
        .await;
    }

    async fn reload(&mut self) {
        self.with_work(Work::reload).await;
    }

    fn is_draining(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.steward.is_draining())
    }

    /// Ends connections to what has drained.
    async fn look_at_api_server(&mut self) {
        if !self.work.as_ref().is_some_and(|work| work.steward.is_due()) {
            return;
        }
        self.with_work(|work, root, shared| {
            let datapath = Datapath::open(root);
            if let Err(error) = &datapath {
                tracing::error!(%error, "cannot look at the connections to the API server");
                return;
            }
            if work.steward.look(datapath.ok().flatten().as_ref()) {
                work.follow(root, shared);
            }
        })
        .await;
    }

    /// Sees to it that backends are probed, if there are any.
    fn probe(&mut self) {
        if let Some(work) = &self.work {
            self.probes.follow(work.steward.probed());
        }
    }

    async fn observe(&mut self, results: apiserver::Results) {
        self.with_work(move |work, root, shared| {
            if work.steward.observe(&results) {
                work.follow(root, shared);
            }
        })
        .await;
    }
}
