//! Runs a program at the cost of one system call, with what `BPF_PROG_TEST_RUN` cannot set: `skb->tc_index`, a VLAN tag beside
//! the frame, a frame that ends inside its IPv4 header; and tells the `tc_index` that the program has set.
//!
//! A small program sets them as the words of `skb->cb` say, calls the program under test, and writes `tc_index` back into `cb`.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use causeway_tests::bpf::bpf;

use crate::bench::{Bench, Family, Hook};

/// What a packet has besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given {
    /// `skb->tc_index`.
    pub(crate) tag: u16,
    /// The frame ends here, though more bytes are passed.
    pub(crate) cut: Option<u16>,
    /// VLAN tag control information, not 0.
    pub(crate) vlan: Option<u16>,
    /// Interface of arrival of a packet that the stack forwards.
    pub(crate) from: u32,
    /// Segment size of a GSO packet, or 0.
    pub(crate) gso_size: u32,
}

/// Four programs, one for each hook. Runs belong on a thread inside the bench's namespace.
pub(crate) struct Stage {
    doors: [Door; 4],
    out: Vec<u8>,
    /// Whether the kernel knows [`SUMMED`].
    can_sum: bool,
    /// `skb->tc_index` after the last run.
    pub(crate) tag: u16,
}

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE`: the packet comes with the sum that a network card has made of it
/// (`CHECKSUM_COMPLETE`), and what the programs do to it must keep that right: the kernel compares (Linux 6.17).
const SUMMED: u32 = 1 << 2;

/// The small program before a program under test, and the array through which it calls.
struct Door {
    program: OwnedFd,
    _array: OwnedFd,
}

impl Stage {
    pub(crate) fn new<F: Family>(bench: &Bench<F>) -> Self {
        Self::of(Hook::ALL.map(|hook| bench.program_fd(hook)))
    }

    /// The programs with these descriptors, in the order of [`Hook::ALL`].
    pub(crate) fn of(programs: [i32; 4]) -> Self {
        Self {
            doors: programs.map(|program| Door::before(program).unwrap()),
            out: vec![0; 8192],
            can_sum: true,
            tag: 0,
        }
    }

    /// The action, and the packet as it is afterwards.
    pub(crate) fn run(&mut self, hook: Hook, ifindex: u32, given: Given, packet: &[u8]) -> (i32, &[u8]) {
        let mut context = [0u8; 192];
        // Offsets in `struct __sk_buff` (Linux 6.18): `ingress_ifindex`, `ifindex`, `cb`, `gso_segs`, `gso_size`.
        let mut set =
            |offset: usize, value: u32| context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        set(36, given.from);
        set(40, ifindex);
        set(48, given.tag.into());
        set(52, given.cut.unwrap_or(0).into());
        set(56, given.vlan.unwrap_or(0).into());
        if given.gso_size != 0 {
            set(164, 2);
            set(176, given.gso_size);
        }
        let mut after = [0u8; 192];
        let mut attributes = TestRun {
            program: self.doors[hook as usize].program.as_raw_fd().cast_unsigned(),
            data_size_in: packet.len() as u32,
            data_size_out: self.out.len() as u32,
            data_in: packet.as_ptr() as u64,
            data_out: self.out.as_mut_ptr() as u64,
            context_size_in: context.len() as u32,
            context_in: context.as_ptr() as u64,
            context_size_out: after.len() as u32,
            context_out: after.as_mut_ptr() as u64,
            // What the door does to a frame, it does not to its sum.
            flags: if self.can_sum && given.cut.is_none() && given.vlan.is_none() {
                SUMMED
            } else {
                0
            },
            ..TestRun::default()
        };
        let run = |attributes: &mut TestRun| {
            // SAFETY: the lengths are those of the slices, which outlive the call.
            unsafe { bpf(BPF_PROG_TEST_RUN, attributes) }.map_err(|error| error.raw_os_error())
        };
        let mut ran = run(&mut attributes);
        if attributes.flags != 0 && matches!(ran, Err(Some(libc::EINVAL))) {
            self.can_sum = false;
            attributes.flags = 0;
            ran = run(&mut attributes);
        }
        match ran {
            Ok(_) => {}
            Err(Some(libc::EBADMSG)) => panic!("{hook:?}: the sum of the packet was not kept: {packet:02x?}"),
            Err(error) => panic!("{hook:?}: {error:?}"),
        }
        let length = attributes.data_size_out as usize;
        self.tag = u16::from_ne_bytes([after[48], after[49]]);
        (attributes.action.cast_signed(), &self.out[..length])
    }
}

impl Door {
    fn before(target: i32) -> io::Result<Self> {
        let array = program_array(target)?;
        Ok(Self {
            program: load(&opening(array.as_raw_fd()))?,
            _array: array,
        })
    }
}

/// Action of a door whose call failed. No program under test has it.
const CLOSED: i32 = 99;

/// Reads `cb`, sets what it says, calls the first program of `array` and notes `tc_index`. The tail call stands in a function of
/// its own ([`INNER`]), whose caller goes on behind it.
fn opening(array: i32) -> Vec<Instruction> {
    const TC_INDEX: i16 = 44;
    const CB: i16 = 48;
    const CHANGE_TAIL: i32 = 38;
    const VLAN_PUSH: i32 = 18;
    const TAIL_CALL: i32 = 12;
    // ETH_P_8021Q in network order, as the helper takes it.
    let vlan = i32::from(0x8100u16.to_be());
    let op = Instruction::new;
    vec![
        op(MOVE, 6, 1, 0, 0),
        op(LOAD, 2, 6, CB, 0),
        op(STORE, 6, 2, TC_INDEX, 0),
        op(LOAD, 2, 6, CB + 4, 0),
        op(JUMP_IF_ZERO, 2, 0, 3, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE_NUMBER, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, CHANGE_TAIL),
        op(LOAD, 3, 6, CB + 8, 0),
        op(JUMP_IF_ZERO, 3, 0, 3, 0),
        op(MOVE, 1, 6, 0, 0),
        op(MOVE_NUMBER, 2, 0, 0, vlan),
        op(CALL, 0, 0, 0, VLAN_PUSH),
        op(MOVE, 1, 6, 0, 0),
        op(CALL, 0, 1, 0, 5),
        op(MOVE, 7, 0, 0, 0),
        op(LOAD, 2, 6, TC_INDEX, 0),
        op(STORE, 6, 2, CB, 0),
        op(MOVE, 0, 7, 0, 0),
        op(EXIT, 0, 0, 0, 0),
        op(LOAD_MAP, 2, 1, 0, array),
        op(0, 0, 0, 0, 0),
        op(MOVE_NUMBER, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, TAIL_CALL),
        op(MOVE_NUMBER, 0, 0, 0, CLOSED),
        op(EXIT, 0, 0, 0, 0),
    ]
}

/// Where the function that calls begins, in instructions.
const INNER: u32 = 20;

const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const JUMP_IF_ZERO: u8 = 0x15;
/// Of a helper; with source register 1 of a function, so many instructions behind the next.
const CALL: u8 = 0x85;
/// Two instructions long; source register 1 makes the number a map's descriptor.
const LOAD_MAP: u8 = 0x18;
const EXIT: u8 = 0x95;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    number: i32,
}

impl Instruction {
    fn new(code: u8, destination: u8, source: u8, offset: i16, number: i32) -> Self {
        Self {
            code,
            registers: source << 4 | destination,
            offset,
            number,
        }
    }
}

fn program_array(target: i32) -> io::Result<OwnedFd> {
    const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
    let mut attributes = MapCreate {
        map_type: BPF_MAP_TYPE_PROG_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
    };
    // SAFETY: the structure holds no pointer.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    let array = unsafe { OwnedFd::from_raw_fd(fd) };
    let key = 0u32;
    let mut attributes = MapUpdate {
        map: array.as_raw_fd().cast_unsigned(),
        _hole: 0,
        key: (&raw const key) as u64,
        value: (&raw const target) as u64,
        flags: 0,
    };
    // SAFETY: key and value have the four bytes that the map was made for.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }?;
    Ok(array)
}

fn load(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    let types = types()?;
    let functions = [[0, OUTER_TYPE], [INNER, INNER_TYPE]];
    let mut attributes = ProgramLoad {
        program_type: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        licence: c"Dual MIT/GPL".as_ptr() as u64,
        types: types.as_raw_fd().cast_unsigned(),
        function_size: size_of_val(&functions[0]) as u32,
        functions: functions.as_ptr() as u64,
        function_count: functions.len() as u32,
        ..ProgramLoad::default()
    };
    // SAFETY: the instructions, the functions and the terminated string outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const OUTER_TYPE: u32 = 4;
const INNER_TYPE: u32 = 5;

/// BTF of the two functions, without which the kernel allows no tail call in a function: `int out(void *ctx)` and
/// `int in(void *ctx)` (`Documentation/bpf/btf.rst`).
fn types() -> io::Result<OwnedFd> {
    const STRINGS: &[u8; 16] = b"\0int\0out\0in\0ctx\0";
    const CTX: u32 = 12;
    const INT: u32 = 1 << 24;
    const POINTER: u32 = 2 << 24;
    const FUNCTION: u32 = 12 << 24;
    const PROTOTYPE: u32 = 13 << 24 | 1;
    const SIGNED_32: u32 = 1 << 24 | 32;
    #[rustfmt::skip]
    let types: [u32; 18] = [
        1, INT, 4, SIGNED_32, // 1: int
        0, POINTER, 0, // 2: void *
        0, PROTOTYPE, 1, CTX, 2, // 3: int (void *ctx)
        5, FUNCTION, 3, // 4: out
        9, FUNCTION, 3, // 5: in
    ];
    let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let (length, strings) = (types.len() as u32, STRINGS.len() as u32);
    // Magic, version, flags; length of this header; where types and strings stand behind it.
    let header = [0x0001_eb9f, 24, 0, length, length, strings];
    let header: Vec<u8> = header.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    let blob = [header, types, STRINGS.to_vec()].concat();
    let mut attributes = BtfLoad {
        btf: blob.as_ptr() as u64,
        log: 0,
        size: blob.len() as u32,
        log_size: 0,
        log_level: 0,
        _hole: 0,
    };
    // SAFETY: `btf` has `size` bytes that outlive the call.
    let fd = unsafe { bpf(BPF_BTF_LOAD, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_BTF_LOAD: libc::c_long = 18;

/// `BPF_MAP_CREATE` of `union bpf_attr`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// `BPF_MAP_*_ELEM` of `union bpf_attr`.
#[repr(C)]
struct MapUpdate {
    map: u32,
    _hole: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `BPF_PROG_LOAD` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    _hole: u32,
}

/// `BPF_BTF_LOAD` of `union bpf_attr`.
#[repr(C)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    _hole: u32,
}

/// `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    action: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
}
