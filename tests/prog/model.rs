//! Ports and states against a model: whatever pods, servers, the stack and time do, in any order.
//!
//! A case is a sequence of operations ([`operation`]) on the real programs ([`world`]); after each the plain bookkeeping of
//! [`reference`] says whether what happened was allowed. Clients, servers and ports are so few that everything collides. A
//! case that fails is made as short as it gets and is kept in `model/regressions.txt`.

mod operation;
mod reference;
mod regressions;
mod world;

use std::{
    cell::{Cell, RefCell},
    env, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use causeway_tests::rng;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
};

use self::{
    operation::{Client, Operation, Protocol, Stack, operations},
    reference::{Model, Went},
    world::World,
};
use crate::kernel_log::KernelLog;

const ORDINARY_SEED: u64 = 20_261_122;
/// Cases of an ordinary run, of 75 operations each on the average.
const ORDINARY: u32 = 3000;
/// Operations of a long run, and the most time it takes.
const LONG: (u64, Duration) = (10_000_000, Duration::from_mins(30));
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/prog/model/regressions.txt");

#[test]
fn ports_and_states_are_as_the_model_has_them() {
    let mut log = KernelLog::open().unwrap();
    let (operations, refused) = run(rng::seed(ORDINARY_SEED), ORDINARY);
    println!("{operations} operations, {refused} refused");
    assert!(refused > 1000, "the ports never ran out");
    assert_eq!(log.complaints().unwrap(), Vec::<String>::new());
}

#[test]
#[ignore = "takes up to half an hour"]
fn long_ports_and_states_are_as_the_model_has_them() {
    let (target, time) = LONG;
    let end = env::var_os("CAUSEWAY_LONG").map(|_| Instant::now() + time);
    let mut log = KernelLog::open().unwrap();
    let (mut operations, mut seed) = (0, rng::seed(ORDINARY_SEED));
    while operations < target && end.is_none_or(|end| Instant::now() < end) {
        operations += run(seed, ORDINARY).0;
        seed += 1;
    }
    println!("{operations} operations");
    assert_eq!(log.complaints().unwrap(), Vec::<String>::new());
}

/// Runs cases. Returns how many operations they had, and how many packets were refused.
fn run(seed: u64, cases: u32) -> (u64, u64) {
    println!("seed {seed}: CAUSEWAY_SEED={seed} repeats this run");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let world = World::new();
    let ns = Arc::clone(&world.bench.ns);
    ns.run(move || {
        let world = RefCell::new(world);
        let (count, refused) = (Cell::new(0), Cell::new(0));
        let outcome = runner.run(&operations(), |operations| {
            let (done, refused_here) =
                case(&mut world.borrow_mut(), &operations).map_err(TestCaseError::fail)?;
            count.set(count.get() + done);
            refused.set(refused.get() + refused_here);
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("seed {seed}: {error}");
        }
        (count.get(), refused.get())
    })
    .unwrap()
}

/// Runs one case by itself.
fn run_one(operations: &[Operation]) {
    let mut world = World::new();
    let ns = Arc::clone(&world.bench.ns);
    ns.run(|| case(&mut world, operations)).unwrap().unwrap();
}

/// Runs a case on an empty table. Returns how many operations it had, and how many packets were refused.
fn case(world: &mut World, operations: &[Operation]) -> Result<(u64, u64), String> {
    world.bench.clear_flows();
    world.bench.clear_crowds();
    let mut model = Model::default();
    let mut refused = 0;
    for (number, operation) in (1..).zip(operations) {
        let all = number == operations.len() || number % 8 == 0;
        let was_refused = apply(world, &mut model, *operation)
            .and_then(|was_refused| {
                let all = all || mem::take(&mut world.made_room);
                compare(world, &mut model, all).map(|()| was_refused)
            })
            .map_err(|what| format!("operation {number}, {operation:?}: {what}"))?;
        refused += u64::from(was_refused);
    }
    Ok((operations.len() as u64, refused))
}

/// Whether a packet was refused.
fn apply(world: &mut World, model: &mut Model, operation: Operation) -> Result<bool, String> {
    let mut refused = false;
    match operation {
        Operation::Send(tuple, says, stack) => {
            // Nobody translates pings, and the stack stops nothing that the node itself sends.
            let stack = match tuple.protocol {
                Protocol::Icmp if stack == Stack::Translates => Stack::Routes,
                _ => stack,
            };
            let went = world.send(tuple, says, stack);
            refused = went == Went::Refused;
            let is_crowded = matches!(went, Went::AsNode { .. }) && world.is_crowded(tuple);
            model.sent(tuple, says, stack, went, is_crowded)?;
        }
        Operation::Answer(protocol, server, port, says) => {
            let by_service = model.is_by_service(protocol, server, port);
            let came = world.answer(protocol, server, port, says, by_service);
            model.answered(protocol, server, port, says, came)?;
        }
        Operation::Call(tuple, says) => {
            if let Some(pod) = world.pod(tuple.client) {
                if !world.call(pod, tuple, says) {
                    return Err("a call was dropped".to_owned());
                }
                model.called(tuple, says);
            }
        }
        Operation::Lose(tuple) if tuple.client != Client::Node => {
            world.lose(tuple);
            model.lost(tuple);
        }
        Operation::Lose(_) => {}
        Operation::Age(tuple, forward, reverse) => {
            world.age(tuple, forward, reverse, model.port_of(tuple));
            model.aged(tuple, forward, reverse);
        }
        Operation::Replace => {
            world.forget(world.bench.b.addr);
            model.replaced(Client::PodB);
        }
    }
    Ok(refused)
}

/// The table is what the model has: of the tuples that are not certain, or of all.
fn compare(world: &mut World, model: &mut Model, all: bool) -> Result<(), String> {
    for tuple in model.tuples(all) {
        let found = world.state(tuple);
        model
            .compare(tuple, found)
            .map_err(|what| format!("{tuple:?}: {what}"))?;
    }
    Ok(())
}
