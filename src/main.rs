//! The program: arguments, configuration, telemetry, the bridge, an exit code.
fn main() {}
