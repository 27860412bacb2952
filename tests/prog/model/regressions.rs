//! Cases that once went wrong, as short as they were made, and that no change of the generator makes another case of.

use super::{
    operation::{Client::*, Operation::*, Protocol::*, Says::*, Server::*, Stack::*, Tuple},
    run_one,
};

fn tuple(protocol: super::operation::Protocol, client: super::operation::Client, port: u16) -> Tuple {
    Tuple {
        protocol,
        client,
        port,
        server: One,
    }
}

#[test]
fn a_socket_of_the_node_takes_its_port_back_from_a_flow_that_is_over() {
    let (pods, nodes) = (tuple(Udp, PodA, 602), tuple(Udp, Node, 602));
    run_one(&[
        Send(pods, Open, Routes),
        Age(pods, true, true),
        Send(nodes, Open, Routes),
        Answer(Udp, One, 602, Open),
    ]);
}

#[test]
fn an_answer_keeps_the_port_of_the_nodes_own_flow() {
    let (pods, nodes) = (tuple(Tcp, PodA, 600), tuple(Tcp, Node, 600));
    run_one(&[
        Send(pods, Open, Routes),
        Age(pods, true, true),
        Send(nodes, Open, Routes),
        Age(nodes, true, true),
        Answer(Tcp, One, 600, Open),
        Send(pods, Open, Routes),
    ]);
}

#[test]
fn a_kernel_flow_whose_packets_policy_stops_is_not_over() {
    let (a, b) = (tuple(Tcp, PodA, 600), tuple(Tcp, PodB, 600));
    run_one(&[
        Send(b, Open, Translates),
        Age(b, true, true),
        Send(b, Continue, Stops),
        Send(a, Open, Routes),
        Send(b, Continue, Translates),
    ]);
}

#[test]
fn a_port_whose_flow_asks_the_kernel_again_goes_to_who_wants_it() {
    let (a, b) = (tuple(Udp, PodA, 600), tuple(Udp, PodB, 600));
    run_one(&[
        Send(a, Open, Routes),
        Age(a, true, true),
        Send(a, Open, Stops),
        Send(b, Open, Routes),
        Send(a, Open, Routes),
        Answer(Udp, One, 600, Open),
    ]);
}

#[test]
fn a_server_that_ends_a_flow_past_the_translation_is_believed() {
    let flow = tuple(Tcp, PodA, 602);
    run_one(&[
        Send(flow, Open, Routes),
        Call(flow, Open),
        Call(flow, Fin),
        Send(flow, Fin, Routes),
        Send(flow, Open, Routes),
        Send(flow, Continue, Routes),
    ]);
}

#[test]
fn a_reset_that_policy_stops_is_heard() {
    let (a, b) = (tuple(Tcp, PodA, 602), tuple(Tcp, PodB, 602));
    run_one(&[
        Send(b, Open, Routes),
        Send(a, Open, Translates),
        Send(a, Reset, Stops),
        Replace,
        Send(a, Open, Routes),
    ]);
}

#[test]
fn a_socket_of_the_node_gives_up_what_it_was_translated_to_when_its_port_is_free() {
    let (pods, nodes) = (tuple(Tcp, PodB, 602), tuple(Tcp, Node, 602));
    let after = super::operation::PORTS.map(|port| Send(tuple(Tcp, PodB, port), Open, Routes));
    let before = [
        Send(pods, Open, Routes),
        Send(nodes, Open, Routes),
        Send(nodes, Reset, Routes),
        Replace,
        Send(nodes, Open, Routes),
    ];
    run_one(&[before.as_slice(), &after[..2]].concat());
}

#[test]
fn a_socket_of_the_node_that_needs_another_port_again_gives_up_the_one_it_had() {
    let [first, second, nodes, next] =
        [(PodA, 603), (PodB, 603), (Node, 603), (PodA, 600)].map(|(client, port)| tuple(Tcp, client, port));
    run_one(&[
        Send(first, Open, Routes),
        Send(nodes, Open, Routes),
        Send(nodes, Reset, Routes),
        Send(second, Open, Routes),
        Send(nodes, Open, Routes),
        Send(next, Open, Routes),
    ]);
}

#[test]
fn a_half_that_is_idle_stays_so_while_its_connection_goes_on() {
    let (a, b) = (tuple(Tcp, PodA, 602), tuple(Tcp, PodB, 602));
    run_one(&[
        Send(a, Open, Routes),
        Age(a, false, true),
        Lose(a),
        Send(a, Continue, Routes),
        Send(a, Open, Routes),
        Lose(a),
        Send(b, Open, Routes),
    ]);
}

#[test]
fn the_ports_run_out_and_the_flows_that_have_one_go_on() {
    let flows: Vec<Tuple> = super::operation::PORTS
        .iter()
        .flat_map(|&port| {
            [
                tuple(Tcp, PodA, port),
                tuple(Tcp, PodB, port),
                tuple(Tcp, Node, port),
            ]
        })
        .collect();
    let opened = flows.iter().map(|&flow| Send(flow, Open, Routes));
    let gone_on = flows.iter().map(|&flow| Send(flow, Continue, Routes));
    run_one(&opened.chain(gone_on).collect::<Vec<_>>());
}
