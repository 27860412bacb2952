//! `causeway agent`: keeps the node right for as long as it runs. Pods and packets do without it.
//!
//! One thread waits for everything (configuration, interfaces, state files, the clock, who asks); one pass at a time runs
//! beside it and does all the work ([`causeway::reconcile`]).

mod events;
mod log;
mod metrics;
mod process;
mod server;
mod state;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use causeway::{
    config::{self, Configuration},
    datapath::{Datapath, DatapathError, Upgraded},
    durable::{Lock, LockError},
    reconcile::{Depth, Keeper},
    root::Root,
    settings::Settings,
};
use clap::Args;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep_until},
};

use self::{
    events::{Events, Trigger},
    state::Shared,
};

/// Between two passes when nothing seems to happen: what makes no event is found after this time.
const PERIOD: Duration = Duration::from_secs(4);
/// Every how many of them one looks at everything, in case an event was lost.
const WHOLE: u32 = 10;
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

/// What a look at everything took is not needed before the next one.
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
    let settings = first_settings(root, &shared);
    upgrade(root);
    let mut agent = Agent {
        root: root.clone(),
        keeper: Some(Keeper::new(root, settings)),
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
    loop {
        let trigger = tokio::select! {
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

/// The files', if they are right; else what was in force before, if anything was in this boot.
fn first_settings(root: &Root, shared: &Shared) -> Settings {
    let loaded = config::load(root);
    shared.note_reload(loaded.as_ref().map(drop).map_err(ToString::to_string));
    match loaded {
        Ok(configuration) => {
            let settings = in_force(root, shared, configuration);
            shared.note_applied();
            settings
        }
        Err(error) => {
            tracing::error!(%error, "the configuration is wrong: what was in force before stays so");
            Settings::noted(root)
        }
    }
}

fn in_force(root: &Root, shared: &Shared, configuration: Configuration) -> Settings {
    let settings = configuration.settings.clone();
    if let Err(error) = settings.note(root) {
        tracing::warn!(%error, "a plug-in that loads the datapath will not know the configuration");
    }
    shared.set_configuration(configuration);
    settings
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
    keeper: Option<Keeper>,
    shared: Arc<Shared>,
}

impl Agent {
    async fn pass(&mut self, depth: Depth) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        let work = spawn_blocking(move || {
            let started = Instant::now();
            let pass = keeper.pass(depth);
            shared.note_pass(&pass, started.elapsed());
            if depth == Depth::Whole {
                give_memory_back();
            }
            keeper
        });
        self.keeper = self.after(work.await.ok());
    }

    async fn reload(&mut self) {
        let Some(mut keeper) = self.keeper.take() else {
            return;
        };
        let (root, shared) = (self.root.clone(), Arc::clone(&self.shared));
        let work = spawn_blocking(move || {
            match config::load(&root) {
                Ok(configuration) => {
                    let settings = in_force(&root, &shared, configuration);
                    let applied = keeper.follow(settings);
                    note_application(&shared, applied);
                }
                Err(error) => {
                    tracing::error!(%error, "the configuration is wrong: what was in force before stays so");
                    shared.note_reload(Err(error.to_string()));
                }
            }
            keeper
        });
        self.keeper = self.after(work.await.ok());
    }

    /// A keeper that was lost with its thread is replaced by one without memory.
    fn after(&self, keeper: Option<Keeper>) -> Option<Keeper> {
        keeper.or_else(|| Some(Keeper::new(&self.root, Settings::noted(&self.root))))
    }
}

fn note_application(shared: &Shared, applied: Result<Vec<&'static str>, DatapathError>) {
    match applied {
        Ok(maps) => {
            if !maps.is_empty() {
                tracing::info!(?maps, "the configuration is in force");
            }
            shared.note_reload(Ok(()));
            shared.note_applied();
        }
        Err(error) => {
            tracing::error!(%error, "the configuration is not in force yet");
            shared.note_reload(Err(error.to_string()));
        }
    }
}
