//! What happens to a node in a case, drawn from a space so small that everything collides.

use std::{fmt, ops::RangeInclusive};

use proptest::prelude::*;

/// Ports and identifiers that clients use.
pub(crate) const PORTS: [u16; 4] = [600, 601, 602, 603];
/// Ports of the class 600 to 1023 that are not reserved. Fewer than the flows that may want one of them.
pub(crate) const USABLE: RangeInclusive<u16> = 600..=609;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Client {
    PodA,
    PodB,
    /// A socket of the node itself.
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    One,
    Two,
    /// In an excluded range: never masqueraded.
    Vnet,
}

/// Both ends of a flow as its client sees them. A server has one port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tuple {
    pub(crate) protocol: Protocol,
    pub(crate) client: Client,
    pub(crate) port: u16,
    pub(crate) server: Server,
}

/// On one line, even among many: a case is read as a story.
impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            client,
            port,
            server,
        } = self;
        write!(f, "{protocol:?} {client:?}:{port} to {server:?}")
    }
}

/// What a packet says. Without TCP's flags all are a datagram, or an echo request of a client and a reply of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Open,
    Continue,
    Fin,
    Reset,
}

/// What the stack does with a pod's packet that is given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    Routes,
    /// The pod has sent to a service's address, and the stack puts the server's in its place.
    Translates,
    /// Policy forbids it.
    Stops,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// The client sends to the server.
    Send(Tuple, Says, Stack),
    /// The server sends to a port of the node.
    Answer(Protocol, Server, u16, Says),
    /// The server sends to the pod itself.
    Call(Tuple, Says),
    /// The forward half of the tuple's entry is deleted.
    Lose(Tuple),
    /// Halves of the tuple's flow have been idle for longer than any lifetime: forward, reverse.
    Age(Tuple, bool, bool),
    /// Pod B is removed, and another gets its address.
    Replace,
}

pub(crate) fn operations() -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(operation(), 1..150)
}

fn operation() -> impl Strategy<Value = Operation> {
    let stack = prop_oneof![
        8 => Just(Stack::Routes),
        2 => Just(Stack::Translates),
        1 => Just(Stack::Stops),
    ];
    prop_oneof![
        10 => (tuple(), says(), stack).prop_map(|(tuple, says, stack)| Operation::Send(tuple, says, stack)),
        5 => (protocol(), server(), USABLE, says())
            .prop_map(|(protocol, server, port, says)| Operation::Answer(protocol, server, port, says)),
        1 => (tuple(), says()).prop_map(|(tuple, says)| Operation::Call(tuple, says)),
        1 => tuple().prop_map(Operation::Lose),
        3 => (tuple(), any::<bool>(), any::<bool>())
            .prop_map(|(tuple, forward, reverse)| Operation::Age(tuple, forward, reverse)),
        1 => Just(Operation::Replace),
    ]
}

fn tuple() -> impl Strategy<Value = Tuple> {
    let client = prop_oneof![4 => Just(Client::PodA), 4 => Just(Client::PodB), 1 => Just(Client::Node)];
    (protocol(), client, prop::sample::select(&PORTS[..]), server()).prop_map(
        |(protocol, client, port, server)| Tuple {
            protocol,
            client,
            port,
            server,
        },
    )
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        3 => Just(Protocol::Tcp),
        2 => Just(Protocol::Udp),
        1 => Just(Protocol::Icmp),
    ]
}

fn server() -> impl Strategy<Value = Server> {
    prop_oneof![8 => Just(Server::One), 1 => Just(Server::Two), 1 => Just(Server::Vnet)]
}

fn says() -> impl Strategy<Value = Says> {
    prop_oneof![
        6 => Just(Says::Open),
        5 => Just(Says::Continue),
        1 => Just(Says::Fin),
        1 => Just(Says::Reset),
    ]
}
