//! The program: arguments, configuration, telemetry, the bridge, an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // One provider for every TLS connection of this process; it is installed once, so that nobody was earlier.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    brokercast::cli::main()
}
