//! A socket between a bridge and a client: it takes only so many bytes, and either end may go at any time.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};

use crate::support::random;

#[derive(Default)]
struct State {
    bytes: BytesMut,
    capacity: usize,
    server_gone: bool,
    client_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

/// What the bridge holds.
pub(super) struct ServerEnd(Rc<RefCell<State>>);

/// What the client holds.
pub(super) struct ClientEnd(Rc<RefCell<State>>);

/// A connection whose buffers hold `capacity` bytes.
pub(super) fn pair(capacity: usize) -> (ServerEnd, ClientEnd) {
    let state = Rc::new(RefCell::new(State { capacity, ..State::default() }));
    (ServerEnd(state.clone()), ClientEnd(state))
}

impl ServerEnd {
    /// Writes a part, as the buffer allows: `Ok(0)` if it is full.
    ///
    /// # Errors
    /// When the client has gone.
    pub(super) fn try_write(&self, bytes: &[u8]) -> Result<usize, Gone> {
        let mut state = self.0.borrow_mut();
        if state.client_gone {
            return Err(Gone);
        }
        let count = bytes.len().min(state.capacity - state.bytes.len());
        state.bytes.extend_from_slice(&bytes[..count]);
        if count > 0
            && let Some(reader) = state.reader.take()
        {
            reader.wake();
        }
        Ok(count)
    }

    /// Writes all, waiting for room.
    ///
    /// # Errors
    /// When the client has gone.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Gone> {
        poll_fn(|cx| {
            while !bytes.is_empty() {
                match self.try_write(bytes)? {
                    0 => {
                        self.0.borrow_mut().writer = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    count => bytes = &bytes[count..],
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Resolves when the client has gone.
    pub(super) async fn closed(&self) {
        poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            if state.client_gone {
                return Poll::Ready(());
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The other end is no longer there.
#[derive(Debug)]
pub(super) struct Gone;

impl ClientEnd {
    /// Reads some of what is there; `None` at the end.
    pub(super) async fn read(&self) -> Option<Bytes> {
        poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            if !state.bytes.is_empty() {
                let most = state.bytes.len();
                let count = if random::in_range(0..4) == 0 { random::in_range(1..=most) } else { most };
                let bytes = state.bytes.split_to(count).freeze();
                if let Some(writer) = state.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Some(bytes));
            }
            if state.server_gone {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for ServerEnd {
    fn drop(&mut self) {
        let mut state = self.0.borrow_mut();
        state.server_gone = true;
        state.wake();
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        let mut state = self.0.borrow_mut();
        state.client_gone = true;
        state.wake();
    }
}
