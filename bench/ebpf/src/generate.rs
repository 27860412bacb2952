//! The generator: some sixty instructions for each packet. Pages come back with what the last pass made of them, so
//! the whole header is written anew, checksums included.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::Array,
    helpers::generated::{bpf_get_prandom_u32, bpf_redirect, bpf_xdp_adjust_tail},
    macros::{btf_map, xdp},
    programs::XdpContext,
};

use crate::layout::{Course, IMIX_PERIOD, LARGEST, Layout, V4, V6, imix};

#[btf_map(name = "cwb_course")]
static COURSE: Array<Course, 1> = Array::new();

/// Number of the next flow, when each packet is another.
#[btf_map(name = "cwb_next")]
static NEXT: Array<u32, 1> = Array::new();

#[xdp]
pub fn cwb_generate(ctx: XdpContext) -> u32 {
    generate(&ctx, V4).unwrap_or(xdp_action::XDP_ABORTED)
}

#[xdp]
pub fn cwb_generate6(ctx: XdpContext) -> u32 {
    generate(&ctx, V6).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn generate(ctx: &XdpContext, layout: Layout) -> Option<u32> {
    let course = COURSE.get(0)?;
    let random = random();
    let frame_len = match course.frame_len {
        0 => resize(ctx, imix((random >> 20) % IMIX_PERIOD))?,
        len => len,
    };
    let start = ctx.data();
    if start + layout.headers() > ctx.data_end() {
        return None;
    }
    let flow = next_flow(course, random)?;
    write(start as *mut u16, layout, course, flow, frame_len);
    // SAFETY: the helper takes integers only.
    Some(unsafe { bpf_redirect(course.ifindex, 0) } as u32)
}

/// Number of the next flow.
#[inline(always)]
pub fn next_flow(course: &Course, random: u32) -> Option<u32> {
    if course.mask != u32::MAX {
        return Some(course.first.wrapping_add(random & course.mask));
    }
    let next = NEXT.get_ptr_mut(0)?;
    // SAFETY: an array's element lives as long as the program; one CPU at a time runs a generator.
    unsafe {
        let flow = *next;
        *next = flow.wrapping_add(1);
        Some(course.first.wrapping_add(flow))
    }
}

/// Writes the headers of a flow's packet. `at` points to the headers' bytes of a packet, two-byte aligned.
#[inline(always)]
pub fn write(at: *mut u16, layout: Layout, course: &Course, flow: u32, frame_len: u32) {
    let port = (course.port + (flow & ((1u32 << (course.port_bits & 31)) - 1))) as u16;
    let addr = course.addr.wrapping_add(flow >> (course.port_bits & 31));
    let [high, low] = [(addr >> 16) as u16, addr as u16].map(u16::to_be);
    let len = |from: usize| (frame_len - from as u32) as u16;
    let (ip_len, udp_len) = (len(layout.counted_from), len(layout.udp));
    let varying = u32::from(high) + u32::from(low);
    // The length stands in the pseudo header too.
    let udp_sum = course.udp_sum + varying + u32::from(port.to_be()) + 2 * u32::from(udp_len.to_be());
    let (addr_end, port_at) = if course.answers == 0 {
        (layout.dst + layout.addr(), layout.udp)
    } else {
        (layout.dst, layout.udp + 2)
    };
    // SAFETY: all words lie within the headers' bytes, which the caller has checked.
    unsafe {
        let mut word = 0;
        while word < layout.headers() / 4 {
            at.add(2 * word)
                .cast::<u32>()
                .write_unaligned(course.header[word]);
            word += 1;
        }
        *at.add(layout.len / 2) = ip_len.to_be();
        if let Some(check) = layout.check {
            *at.add(check / 2) = fold(course.ip_sum + varying + u32::from(ip_len.to_be()));
        }
        *at.add(addr_end / 2 - 2) = high;
        *at.add(addr_end / 2 - 1) = low;
        *at.add(port_at / 2) = port.to_be();
        *at.add(layout.udp / 2 + 2) = udp_len.to_be();
        *at.add(layout.udp / 2 + 3) = match fold(udp_sum) {
            0 => u16::MAX,
            sum => sum,
        };
    }
}

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_get_prandom_u32() }
}

/// RFC 1071.
#[inline(always)]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Cuts a frame of [`LARGEST`] bytes.
#[inline(always)]
fn resize(ctx: &XdpContext, wanted: u32) -> Option<u32> {
    // The kernel restores a page's length after each pass.
    let delta = wanted as i32 - LARGEST as i32;
    // SAFETY: the context is the program's; the helper checks the bounds.
    (unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } == 0).then_some(wanted)
}
