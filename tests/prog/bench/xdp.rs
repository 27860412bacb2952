//! Frames through `cwy_xdp_uplink`.

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use causeway_common::{maps::XDP_PROGRAM, reason::Reason};

use super::{Bench, Hook};

pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_REDIRECT: u32 = 4;

impl Bench {
    pub(super) fn load_xdp(&mut self) {
        let program: &mut Xdp = self.object.program_mut(XDP_PROGRAM).unwrap().try_into().unwrap();
        program.load().unwrap();
    }

    fn xdp(&self) -> &Xdp {
        self.object.program(XDP_PROGRAM).unwrap().try_into().unwrap()
    }

    /// Verifier instructions of the program.
    pub(crate) fn xdp_verified_instructions(&self) -> u32 {
        self.xdp().info().unwrap().verified_instruction_count().unwrap()
    }

    /// Runs a frame as it comes from the wire. Returns the frame as it goes on if it was redirected; what passes must not have
    /// changed, and nothing must have been counted for it.
    pub(crate) fn run_xdp(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let before = self.counts(Hook::FromUplink);
        let mut out = vec![0; frame.len() + 256];
        // `struct xdp_md` (Linux 6.18): where the frame ends at offset 4, `ingress_ifindex` at 12.
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&u32::try_from(frame.len()).unwrap().to_ne_bytes());
        context[12..16].copy_from_slice(&self.uplink_ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = self.ns.run(|| self.xdp().test_run(options)).unwrap().unwrap();
        out.truncate(result.data_size_out as usize);
        let mut expected = before;
        let action = result.return_value;
        if action == XDP_REDIRECT {
            expected[Reason::CarriedByXdp as usize] += 1;
        } else {
            assert_eq!(action, XDP_PASS, "{frame:02x?}");
            assert_eq!(out, frame, "passed on, and changed");
        }
        assert_eq!(self.counts(Hook::FromUplink), expected, "{frame:02x?}");
        (action == XDP_REDIRECT).then_some(out)
    }
}
