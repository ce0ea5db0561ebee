//! The program: arguments, configuration, telemetry, the bridge, an exit code.

use std::process::ExitCode;

/// Events are made by one thread and dropped by others, for weeks: glibc's allocator is slower at that, and its heaps
/// keep more of it (`benches/README.md` has the figures).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One provider for every TLS connection of this process; it is installed once, so that nobody was earlier.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    brokercast::cli::main()
}
