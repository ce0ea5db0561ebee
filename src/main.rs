//! The program: arguments, configuration, telemetry, the bridge, an exit code.

use std::process::ExitCode;

/// Events are made by one thread and dropped by others, for weeks: glibc's allocator is slower at that, and a subscriber
/// costs a quarter more of it. mimalloc is as fast and starts with more.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // One provider for every TLS connection of this process; this is the first call, so it cannot fail.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    brokercast::main()
}
