//! A Unix socket to listen on: its file is made with its mode, and removed at the end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

/// See the module.
pub(crate) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of its file.
    file: Option<(u64, u64)>,
}

impl UnixSocket {
    /// Takes the place of a file that a process which has ended left behind.
    ///
    /// # Errors
    /// When a process listens there, when the file is no socket, or the folder cannot be written to.
    pub(super) fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        let address = SockAddr::unix(path)?;
        match socket.bind(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                fs::remove_file(path)?;
                socket.bind(&address)?;
            }
            bound => bound?,
        }
        // Before it listens: nobody can connect with the mode that the file was made with.
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        socket.listen(super::BACKLOG)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(Self { listener, path: path.to_owned(), file: identity(path) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(socket, _)| socket)
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Another process may have put its own there.
        if self.file.is_some() && self.file == identity(&self.path) {
            fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Whether it is a socket on which no process listens.
fn is_abandoned(path: &Path) -> bool {
    let refuses =
        || matches!(std::os::unix::net::UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused);
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) && refuses()
}
