//! What makes the agent look: files that change, interfaces, addresses, routes and neighbours that come and go.

use std::{
    io,
    path::{Path, PathBuf},
};

use causeway::{apiserver::conflist, config, endpoints, ipam::store, root::Root};
use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;

/// What to look at. The greater one includes the lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trigger {
    /// Everything, as every few seconds.
    Clock,
    /// Everything, because something has changed.
    Node,
    /// The configuration before everything else.
    Configuration,
}

/// Kinds of changes by which a file gets other content, or goes.
const CHANGES: WatchMask = WatchMask::CLOSE_WRITE
    .union(WatchMask::CREATE)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF);

/// The sources of events.
pub(super) struct Events {
    files: Files,
    netlink: mpsc::UnboundedReceiver<()>,
}

impl Events {
    /// Watches from here on.
    pub(super) fn watch(root: &Root) -> io::Result<Self> {
        Ok(Self {
            files: Files::watch(root)?,
            netlink: netlink()?,
        })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) -> Trigger {
        tokio::select! {
            trigger = self.files.next() => trigger,
            received = self.netlink.recv() => {
                if received.is_none() {
                    // The socket is lost: the clock goes on.
                    std::future::pending::<()>().await;
                }
                Trigger::Node
            }
        }
    }
}

/// Directories, each with what a change in it means. One that is not there yet is waited for in the nearest one above.
struct Files {
    /// Where the plug-in notes what a conflist says.
    of_conflist: PathBuf,
    wanted: Vec<(PathBuf, Trigger)>,
    watched: Vec<(WatchDescriptor, Trigger)>,
    watches: Watches,
    stream: EventStream<[u8; 4096]>,
}

impl Files {
    fn watch(root: &Root) -> io::Result<Self> {
        let mut wanted: Vec<_> = config::directories(root)
            .into_iter()
            .map(|directory| (directory, Trigger::Configuration))
            .collect();
        for file in [endpoints::STATE, store::STATE] {
            let directory = root.path(file).parent().map(Path::to_owned);
            wanted.extend(directory.map(|directory| (directory, Trigger::Node)));
        }
        wanted.dedup();
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let mut files = Self {
            of_conflist: conflist::directory(root),
            wanted,
            watched: Vec::new(),
            watches,
            stream: inotify.into_event_stream([0; 4096])?,
        };
        files.renew();
        Ok(files)
    }

    /// Watches what is there of the directories, after one of them may have come or gone.
    fn renew(&mut self) {
        self.watched.clear();
        // The one above is ours, where things change all the time.
        if let Err(error) = std::fs::create_dir_all(&self.of_conflist) {
            tracing::warn!(%error, "what a conflist says is found by the clock");
        }
        for (directory, trigger) in &self.wanted {
            let mut place = directory.as_path();
            while !place.is_dir() {
                match place.parent() {
                    Some(parent) => place = parent,
                    None => break,
                }
            }
            match self.watches.add(place, CHANGES) {
                Ok(descriptor) => self.watched.push((descriptor, *trigger)),
                Err(error) => {
                    tracing::warn!(%error, path = %place.display(), "cannot watch: changes are found by the clock");
                }
            }
        }
    }

    async fn next(&mut self) -> Trigger {
        loop {
            let Some(Ok(event)) = self.stream.next().await else {
                // A full queue has lost events of any kind.
                return Trigger::Configuration;
            };
            let name = event.name.map(|name| name.to_string_lossy().into_owned());
            let trigger = self
                .watched
                .iter()
                .filter(|(descriptor, _)| *descriptor == event.wd)
                .map(|(_, trigger)| *trigger)
                .max();
            if event.mask.intersects(
                inotify::EventMask::ISDIR
                    | inotify::EventMask::IGNORED
                    | inotify::EventMask::DELETE_SELF
                    | inotify::EventMask::MOVE_SELF,
            ) {
                self.renew();
                return trigger.unwrap_or(Trigger::Configuration);
            }
            match trigger {
                Some(Trigger::Node) if !name.is_some_and(|name| is_state(&name)) => {}
                Some(trigger) => return trigger,
                None => {}
            }
        }
    }
}

/// The directory is everybody's.
fn is_state(name: &str) -> bool {
    [endpoints::STATE, store::STATE]
        .iter()
        .any(|path| Path::new(path).file_name().is_some_and(|state| state == name))
}

/// Neighbours change all the time, filters with every pod: of these only what goes is of interest.
fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{NewNeighbour, NewTrafficFilter};
    let comes = matches!(
        payload,
        NetlinkPayload::InnerMessage(NewNeighbour(_) | NewTrafficFilter(_))
    );
    !comes
}

/// A word for every message of the groups that matters.
fn netlink() -> io::Result<mpsc::UnboundedReceiver<()>> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Neigh,
        MulticastGroup::Tc,
    ];
    let (connection, _handle, mut messages) = new_multicast_connection(&groups)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(connection);
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            if matters(&message.payload) && sender.send(()).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_directory_that_comes_later_is_watched_too() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let mut files = Files::watch(&root).unwrap();
        let config = root.path("/etc/config");
        fs::create_dir_all(&config).unwrap();
        let mut seen = files.next().await;
        // The directories above came one by one.
        for _ in 0..3 {
            seen = seen.max(
                tokio::time::timeout(std::time::Duration::from_millis(200), files.next())
                    .await
                    .unwrap_or(seen),
            );
        }
        assert_eq!(seen, Trigger::Configuration);
        fs::write(config.join("ip-masq-agent"), "masqLinkLocal: true").unwrap();
        assert_eq!(files.next().await, Trigger::Configuration);
    }

    #[tokio::test]
    async fn only_the_state_files_of_their_directory_matter() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let run = root.path("/var/run");
        fs::create_dir_all(&run).unwrap();
        fs::create_dir_all(root.path("/etc/config")).unwrap();
        fs::create_dir_all(root.path("/etc/causeway")).unwrap();
        let mut files = Files::watch(&root).unwrap();
        fs::write(run.join("something"), "").unwrap();
        fs::write(run.join("azure-vnet.json"), "{}").unwrap();
        assert_eq!(files.next().await, Trigger::Node);
    }
}
