//! Queueing disciplines and filters at the clsact hooks.

use netlink_packet_core::NLM_F_ECHO;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcMessage},
};

use super::{CHANGE, LinkError, Netlink, answer::FilterLine, refused};

/// A queueing discipline of the ingress kind: an interface has at most one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qdisc {
    /// Filters at ingress and egress.
    Clsact,
    /// Filters at ingress only.
    Ingress,
}

/// A BPF filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) priority: u16,
    pub(crate) handle: u32,
    /// The name it was attached under.
    pub(crate) name: String,
    pub(crate) program_id: u32,
}

impl Netlink {
    /// The interface's clsact or ingress discipline: one question, not a list of those of every interface.
    pub(crate) fn ingress_qdisc(&mut self, ifindex: u32) -> Result<Option<Qdisc>, LinkError> {
        let mut asked = of_interface(ifindex);
        asked.header.parent = TcHandle::CLSACT;
        // Before Linux 6.7 the answer goes to whoever asks for an echo.
        match self
            .socket
            .ask::<Option<Qdisc>>(RouteNetlinkMessage::GetQueueDiscipline(asked), NLM_F_ECHO)
        {
            Ok(found) => Ok(found.into_iter().flatten().next()),
            // Either it has none, or it is gone itself.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
            Err(error) => Err(refused(error, || {
                format!("read the qdisc of interface {ifindex}")
            })),
        }
    }

    /// Deletes the interface's clsact discipline, with all its filters.
    pub(crate) fn delete_clsact(&mut self, ifindex: u32) -> Result<(), LinkError> {
        let mut message = of_interface(ifindex);
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle {
            major: TcHandle::CLSACT.major,
            minor: 0,
        };
        self.change(RouteNetlinkMessage::DelQueueDiscipline(message), CHANGE, || {
            format!("delete the clsact qdisc of interface {ifindex}")
        })
    }

    /// The BPF filters of one direction, and how many filters there are in all.
    pub(crate) fn filters(&mut self, ifindex: u32, egress: bool) -> Result<(Vec<Filter>, usize), LinkError> {
        let mut all = of_interface(ifindex);
        all.header.parent = TcHandle {
            major: TcHandle::CLSACT.major,
            minor: if egress {
                TcHandle::MIN_EGRESS
            } else {
                TcHandle::MIN_INGRESS
            },
        };
        let lines: Vec<FilterLine> = self.list(&RouteNetlinkMessage::GetTrafficFilter(all), || {
            format!("list the filters of interface {ifindex}")
        })?;
        let (mut filters, mut count) = (Vec::new(), 0);
        for line in lines {
            match line {
                FilterLine::Priority => {}
                FilterLine::Foreign => count += 1,
                FilterLine::Bpf(filter) => {
                    count += 1;
                    filters.push(filter);
                }
            }
        }
        Ok((filters, count))
    }
}

fn of_interface(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message
}
