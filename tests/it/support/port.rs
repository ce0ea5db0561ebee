//! Free ports that no other test of this machine takes: each is held by a locked file for as long as it is used.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};

/// A port of 127.0.0.1, kept from other tests until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes one, below the range from which the system serves outgoing connections.
    pub fn take() -> Self {
        let folder = std::env::temp_dir().join("brokercast-test-ports");
        std::fs::create_dir_all(&folder).unwrap();
        for _ in 0..10_000 {
            let number: u16 = rand::random_range(10_000..32_000);
            let Ok(lock) = File::options().create(true).truncate(false).write(true).open(folder.join(number.to_string())) else {
                continue;
            };
            if lock.try_lock().is_err() || TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_err() {
                continue;
            }
            return Self { number, _lock: lock };
        }
        panic!("no free port between 10000 and 32000");
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}
