//! A loop's thread: waits with mio for sockets, news and deadlines, and lets the loop take its turns.
//!
//! The only file that knows mio. Knows nothing of channels, nor of what is written.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::handle::Handle;
use super::step::{Io, Next, Now, WriterLoop};
use super::vanished::Looks;
use super::{Counted, Returned, Settings, socket};
use crate::hub::Hub;
use crate::support::peer::Silence;

/// What the loops write to.
pub(super) type Socket = mio::net::TcpStream;

const WAKE: Token = Token(usize::MAX);
/// The longest wait: the system's clock may be set meanwhile.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Takes a socket from tokio.
pub(super) fn from_runtime(socket: TcpStream) -> io::Result<Socket> {
    socket.into_std().map(Socket::from_std)
}

/// Gives a socket to tokio. To be called within its runtime.
pub(super) fn into_runtime(socket: Socket) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.into())
}

impl socket::Socket for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(self, bytes)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(self, buffer)
    }

    fn shutdown(&mut self) {
        // The client may have gone meanwhile.
        Socket::shutdown(self, Shutdown::Write).unwrap_or_default();
    }
}

struct Reactor {
    poll: Poll,
    returned: Give,
    /// The sockets that tasks write to.
    tasks: Arc<AtomicUsize>,
}

type Give = mpsc::UnboundedSender<(Returned<Socket>, Counted)>;

impl Io for Reactor {
    type Socket = Socket;

    fn watch(&mut self, socket: &mut Socket, key: u32) -> io::Result<()> {
        self.poll.registry().register(socket, Token(key as usize), Interest::READABLE | Interest::WRITABLE)
    }

    fn give_back(&mut self, mut returned: Returned<Socket>) {
        if self.poll.registry().deregister(&mut returned.socket).is_ok() {
            // Nothing receives it when the process is about to end.
            drop(self.returned.send((returned, Counted::new(&self.tasks))));
        }
    }
}

/// Starts a loop. The receiver resolves when the loop has ended.
pub(super) fn start(
    hub: &Arc<Hub>,
    number: usize,
    settings: Settings,
    heartbeat: Duration,
    (returned, tasks): (Give, Arc<AtomicUsize>),
) -> io::Result<(Arc<Handle<Socket>>, oneshot::Receiver<()>)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKE)?;
    let wake = move || {
        if let Err(error) = waker.wake() {
            tracing::error!(%error, "a writer cannot be woken");
        }
    };
    let listener = hub.listen(wake).ok_or_else(|| io::Error::other("a hub has at most 64 writers"))?;
    let handle = Handle::new(listener);
    let writer = WriterLoop::new(hub.clone(), handle.clone(), settings, Reactor { poll, returned, tasks });
    let (alive, ended) = oneshot::channel();
    std::thread::Builder::new().name(format!("writer-{number}")).spawn(move || {
        run(writer, heartbeat);
        drop(alive);
    })?;
    Ok((handle, ended))
}

fn run(mut writer: WriterLoop<Reactor>, heartbeat: Duration) {
    let mut events = Events::with_capacity(1024);
    let mut looks = Looks::new(heartbeat, Instant::now());
    let mut longest = None;
    loop {
        if let Err(error) = writer.io().poll.poll(&mut events, longest)
            && error.kind() != ErrorKind::Interrupted
        {
            tracing::error!(%error, "a writer cannot wait for its sockets");
            return;
        }
        let now = Now::read();
        for event in events.iter().filter(|event| event.token() != WAKE) {
            let readable = event.is_readable() || event.is_error();
            writer.ready(event.token().0 as u32, readable, event.is_writable(), now);
        }
        if looks.wait(now.monotonic).is_zero() {
            writer.look(&mut looks, now, |socket| Silence::of(socket).lasts);
        }
        longest = match writer.turn(now) {
            Next::Turn => Some(Duration::ZERO),
            Next::Sleep { until } => {
                let until =
                    until.map(|until| until.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), LONGEST_WAIT));
                let look = (!writer.is_empty()).then(|| looks.wait(now.monotonic));
                until.into_iter().chain(look).min()
            }
            Next::Stop => return,
        };
    }
}
