//! The one line that every call leaves in the log.

use std::time::Instant;

use crate::{error::CniError, invocation::Invocation};

/// What is known of a call while it runs.
#[derive(Debug)]
pub(crate) struct Summary {
    started: Instant,
    /// The verb.
    pub(crate) command: String,
    /// The container's id.
    pub(crate) container: String,
    /// The interface's name in the container.
    pub(crate) interface: String,
    /// The container's namespace, as given.
    pub(crate) netns: String,
    /// The pod as `namespace/name`, as far as the client names them.
    pub(crate) pod: String,
    /// The address.
    pub(crate) ip: String,
}

impl Summary {
    pub(crate) fn new(command: &str) -> Self {
        let empty = String::new;
        Self {
            started: Instant::now(),
            command: command.to_owned(),
            container: empty(),
            interface: empty(),
            netns: empty(),
            pod: empty(),
            ip: empty(),
        }
    }

    pub(crate) fn identify(&mut self, invocation: &Invocation) {
        self.container.clone_from(&invocation.container);
        self.interface.clone_from(&invocation.interface);
        self.netns.clone_from(&invocation.netns);
        let names = [invocation.namespace(), invocation.pod()];
        self.pod = names
            .iter()
            .filter(|name| !name.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join("/");
    }

    /// Writes the line. A pod without a name is no error (podman and ctr give none), but noted by the empty field.
    pub(crate) fn log(&self, outcome: &Result<(), CniError>) {
        let duration_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Self {
            command,
            container,
            interface,
            netns,
            pod,
            ip,
            ..
        } = self;
        match outcome {
            Ok(()) => {
                tracing::info!(command, duration_us, container, interface, netns, pod, ip, "done");
            }
            Err(error) => tracing::error!(
                command,
                duration_us,
                container,
                interface,
                netns,
                pod,
                ip,
                code = error.code,
                error = error.msg,
                details = error.details,
                "failed"
            ),
        }
    }
}
