//! A model of a feature-rich path, in the shape that such datapaths have: several programs joined by tail calls, each
//! parsing anew; a prefix lookup for the identity of the remote; one LRU table of connections and one of translations;
//! and the kernel's route lookup for every packet. It serves the bench's traffic alone and stands for nobody's code.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_ANY, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT,
        TC_ACT_UNSPEC, bpf_fib_lookup,
    },
    btf_maps::{LpmTrie, LruHashMap, ProgramArray, lpm_trie},
    helpers::generated::{
        bpf_fib_lookup as fib_lookup, bpf_ktime_get_ns, bpf_l3_csum_replace, bpf_l4_csum_replace,
        bpf_redirect, bpf_redirect_peer, bpf_skb_store_bytes,
    },
    macros::{btf_map, classifier},
    programs::TcContext,
};

use crate::{
    layout::V4,
    packet::{DST, Headers, IP_CHECK, SRC, TCP, TCP_CHECK, UDP_CHECK},
};

/// As the bench sets it when it loads the model; otherwise the tables would cost every loading of the object.
const ENTRIES: usize = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct Tuple {
    src: u32,
    dst: u32,
    ports: u32,
    protocol: u32,
}

impl Tuple {
    #[inline(always)]
    fn of(headers: Headers) -> Self {
        Self {
            src: headers.src(),
            dst: headers.dst(),
            ports: headers.ports(),
            protocol: u32::from(headers.protocol()),
        }
    }

    #[inline(always)]
    fn reversed(self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            ports: self.ports.rotate_left(16),
            ..self
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Connection {
    seen: u64,
    packets: u64,
    bytes: u64,
    identity: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Mapping {
    seen: u64,
    addr: u32,
    ifindex: u32,
}

#[btf_map(name = "cwb_m_identity")]
static IDENTITIES: LpmTrie<u32, u32, 1024> = LpmTrie::new();

#[btf_map(name = "cwb_m_conns")]
static CONNECTIONS: LruHashMap<Tuple, Connection, ENTRIES> = LruHashMap::new();

#[btf_map(name = "cwb_m_nat")]
static MAPPINGS: LruHashMap<Tuple, Mapping, ENTRIES> = LruHashMap::new();

/// The model's later stages: [`cwb_model_conn`], [`cwb_model_nat`], [`cwb_model_pod`].
#[btf_map(name = "cwb_m_stages")]
static STAGES: ProgramArray<3> = ProgramArray::new();

/// The node's address, as on the wire. Set when the object is loaded.
#[unsafe(no_mangle)]
static CWB_NODE: u32 = 0;

/// From the pod, first stage: who is the remote?
#[classifier]
pub fn cwb_model_in(ctx: TcContext) -> i32 {
    match parse(&ctx) {
        Some(headers) if identity(headers.dst()) != 0 => stage(&ctx, 0),
        _ => TC_ACT_UNSPEC,
    }
}

/// Second stage: the connection.
#[classifier]
pub fn cwb_model_conn(ctx: TcContext) -> i32 {
    match parse(&ctx) {
        Some(headers) if track(&ctx, Tuple::of(headers), headers.dst()).is_some() => stage(&ctx, 1),
        _ => TC_ACT_SHOT,
    }
}

/// Third stage: translation, route, away.
#[classifier]
pub fn cwb_model_nat(ctx: TcContext) -> i32 {
    parse(&ctx)
        .and_then(|headers| leave(&ctx, headers))
        .unwrap_or(TC_ACT_SHOT)
}

/// From the uplink, first stage: whose answer is it?
#[classifier]
pub fn cwb_model_back(ctx: TcContext) -> i32 {
    let Some(headers) = parse(&ctx) else {
        return TC_ACT_UNSPEC;
    };
    let tuple = Tuple::of(headers);
    let Some(mapping) = mapping(&tuple) else {
        return TC_ACT_UNSPEC;
    };
    let pod = mapping.addr;
    if replace(&ctx, headers.protocol(), DST, tuple.dst, pod).is_none() {
        return TC_ACT_SHOT;
    }
    stage(&ctx, 2)
}

/// From the uplink, second stage: the connection, and into the pod.
#[classifier]
pub fn cwb_model_pod(ctx: TcContext) -> i32 {
    parse(&ctx)
        .and_then(|headers| deliver(&ctx, headers))
        .unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn leave(ctx: &TcContext, headers: Headers) -> Option<i32> {
    let tuple = Tuple::of(headers);
    let node = node();
    if mapping(&tuple).is_none() {
        let forward = Mapping {
            seen: now(),
            addr: node,
            ifindex: ingress(ctx),
        };
        let answer = Tuple { src: node, ..tuple }.reversed();
        let back = Mapping {
            addr: tuple.src,
            ..forward
        };
        MAPPINGS.insert(tuple, forward, u64::from(BPF_ANY)).ok()?;
        MAPPINGS.insert(answer, back, u64::from(BPF_ANY)).ok()?;
    }
    let mut route = route(ctx, headers);
    // SAFETY: context and parameters are live, and the length is theirs.
    let found = unsafe {
        fib_lookup(
            ctx.as_ptr(),
            (&raw mut route).cast(),
            size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    };
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        return Some(TC_ACT_UNSPEC);
    }
    replace(ctx, headers.protocol(), SRC, tuple.src, node)?;
    let macs: [[u8; 6]; 2] = [route.dmac, route.smac];
    store(ctx, 0, &macs)?;
    // SAFETY: the helper takes integers only.
    Some(unsafe { bpf_redirect(route.ifindex, 0) as i32 })
}

#[inline(always)]
fn deliver(ctx: &TcContext, headers: Headers) -> Option<i32> {
    let question = Tuple::of(headers).reversed();
    if identity(headers.src()) == 0 {
        return None;
    }
    track(ctx, question, headers.src())?;
    let pod = mapping(&question)?.ifindex;
    // SAFETY: the helper takes integers only.
    Some(unsafe { bpf_redirect_peer(pod, 0) as i32 })
}

/// Notes a packet on its connection, which it makes if there is none.
#[inline(always)]
fn track(ctx: &TcContext, tuple: Tuple, remote: u32) -> Option<()> {
    let len = u64::from(ctx.len());
    if let Some(connection) = CONNECTIONS.get_ptr_mut(tuple) {
        // SAFETY: the kernel returns a valid element or null; a lost update on another CPU costs a count.
        unsafe {
            (*connection).seen = now();
            (*connection).packets += 1;
            (*connection).bytes += len;
        }
        return Some(());
    }
    let connection = Connection {
        seen: now(),
        packets: 1,
        bytes: len,
        identity: identity(remote),
        flags: 0,
    };
    CONNECTIONS.insert(tuple, connection, u64::from(BPF_ANY)).ok()
}

#[inline(always)]
fn mapping(tuple: &Tuple) -> Option<Mapping> {
    // SAFETY: the kernel returns a valid element or null; it is copied at once.
    MAPPINGS.get_ptr(tuple).map(|mapping| unsafe { *mapping })
}

#[inline(always)]
fn identity(addr: u32) -> u32 {
    IDENTITIES
        .get(&lpm_trie::Key::new(32, addr))
        .copied()
        .unwrap_or(0)
}

/// Replaces the address at `offset` with both checksums.
#[inline(always)]
fn replace(ctx: &TcContext, protocol: u8, offset: usize, old: u32, new: u32) -> Option<()> {
    let (check, flags) = match protocol {
        TCP => (TCP_CHECK, 0),
        _ => (UDP_CHECK, u64::from(BPF_F_MARK_MANGLED_0)),
    };
    let (skb, old, addr) = (ctx.as_ptr().cast(), u64::from(old), u64::from(new));
    let flags = flags | u64::from(BPF_F_PSEUDO_HDR) | 4;
    // SAFETY: `skb` is the program's context; the helpers check the offsets against the packet.
    let done = unsafe {
        bpf_l4_csum_replace(skb, check as u32, old, addr, flags)
            | bpf_l3_csum_replace(skb, IP_CHECK as u32, old, addr, 4)
    };
    if done != 0 {
        return None;
    }
    store(ctx, offset, &new)
}

#[inline(always)]
fn store<T>(ctx: &TcContext, offset: usize, value: &T) -> Option<()> {
    let from = (&raw const *value).cast();
    // SAFETY: the source is a live value of this length; the helper checks the offset against the packet.
    let done =
        unsafe { bpf_skb_store_bytes(ctx.as_ptr().cast(), offset as u32, from, size_of::<T>() as u32, 0) };
    (done == 0).then_some(())
}

#[inline(always)]
fn route(ctx: &TcContext, headers: Headers) -> bpf_fib_lookup {
    const AF_INET: u8 = 2;
    // SAFETY: integers and unions of integers: all zero is a value.
    let mut route: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    route.family = AF_INET;
    route.l4_protocol = headers.protocol();
    route.ifindex = ingress(ctx);
    route.__bindgen_anon_3.ipv4_src = headers.src();
    route.__bindgen_anon_4.ipv4_dst = headers.dst();
    route
}

#[inline(always)]
fn parse(ctx: &TcContext) -> Option<Headers> {
    Headers::parse(ctx.data(), ctx.data_end(), V4)
}

#[inline(always)]
fn stage(ctx: &TcContext, number: u32) -> i32 {
    // SAFETY: nothing here has a destructor.
    unsafe { STAGES.tail_call(ctx, number) };
    TC_ACT_SHOT
}

#[inline(always)]
fn ingress(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the whole run.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn node() -> u32 {
    // SAFETY: a static; volatile, because the loader writes another value than the compiler has seen.
    unsafe { (&raw const CWB_NODE).read_volatile() }
}
