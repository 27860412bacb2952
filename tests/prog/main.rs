//! The kernel programs through `BPF_PROG_TEST_RUN`: packet in, packet out, verdict, counters that moved.
