//! A TCP proxy between a bridge and its broker, whose connections a test can cut, in the middle of a frame too.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Forwards one port to another until dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    open: AtomicBool,
    closed: AtomicBool,
    silent: AtomicBool,
    /// Cut each connection after so many more bytes from the broker; `u64::MAX`: never.
    budget: AtomicU64,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Starts one in front of a port of 127.0.0.1.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            target,
            open: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            budget: AtomicU64::new(u64::MAX),
            sockets: Mutex::default(),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.closed.load(Ordering::SeqCst) {
                    return;
                }
                if accepting.open.load(Ordering::SeqCst) {
                    accepting.clone().join(client);
                }
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts every connection now.
    pub fn cut(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            socket.shutdown(Shutdown::Both).ok();
        }
    }

    /// Cuts the connections after so many more bytes from the broker, wherever in a frame that is.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.budget.store(bytes, Ordering::SeqCst);
    }

    /// Takes connections (again), or refuses them.
    pub fn set_open(&self, open: bool) {
        self.shared.open.store(open, Ordering::SeqCst);
        if !open {
            self.cut();
        }
    }

    /// Passes nothing on, in either direction, and closes nothing: a cable that is pulled.
    pub fn set_silent(&self, silent: bool) {
        self.shared.silent.store(silent, Ordering::SeqCst);
    }
}

impl Shared {
    fn join(self: Arc<Self>, client: TcpStream) {
        let Ok(broker) = TcpStream::connect(("127.0.0.1", self.target)) else { return };
        client.set_nodelay(true).ok();
        broker.set_nodelay(true).ok();
        let (Ok(c), Ok(b)) = (client.try_clone(), broker.try_clone()) else { return };
        let (Ok(c2), Ok(b2)) = (client.try_clone(), broker.try_clone()) else { return };
        self.sockets.lock().unwrap().extend([c2, b2]);
        let other = self.clone();
        thread::spawn(move || self.copy(client, broker, false));
        thread::spawn(move || other.copy(b, c, true));
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, from_broker: bool) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            while self.silent.load(Ordering::SeqCst) && !self.closed.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
            let mut take = n;
            if from_broker {
                let left = self.budget.load(Ordering::SeqCst);
                if left != u64::MAX {
                    take = n.min(usize::try_from(left).unwrap_or(n));
                    self.budget.store(left - take as u64, Ordering::SeqCst);
                }
            }
            if to.write_all(&buffer[..take]).is_err() {
                break;
            }
            if take < n {
                self.budget.store(u64::MAX, Ordering::SeqCst);
                break;
            }
        }
        from.shutdown(Shutdown::Both).ok();
        to.shutdown(Shutdown::Both).ok();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
    }
}
