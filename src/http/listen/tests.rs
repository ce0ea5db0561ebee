use std::os::unix::fs::PermissionsExt as _;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const OPTIONS: Options = Options { user_timeout: Duration::from_secs(77), mode: 0o640 };

/// A listener on a free port.
pub(crate) fn loopback(user_timeout: Duration) -> (Listener, SocketAddr) {
    let listener = Listener::bind("server.listen", &free(), Options { user_timeout, ..OPTIONS }).unwrap();
    let Address::Tcp(address) = listener.address().unwrap() else { panic!("no port") };
    (listener, address)
}

fn free() -> Address {
    Address::parse("127.0.0.1:0").unwrap()
}

#[tokio::test]
async fn accepted_sockets_inherit_what_the_listener_was_told() {
    let (listener, address) = loopback(OPTIONS.user_timeout);
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (socket, peer) = accepted.unwrap();
    assert_eq!(peer, client.unwrap().local_addr().ok());
    assert!(socket.nodelay().unwrap());
    #[cfg(target_os = "linux")]
    {
        assert_eq!(SockRef::from(&socket).tcp_user_timeout().unwrap(), Some(Duration::from_secs(77)));
        assert_eq!(SockRef::from(&socket).tcp_notsent_lowat().unwrap(), UNSENT);
    }
}

#[tokio::test]
async fn a_port_or_path_that_is_taken_names_the_key_to_change() {
    let folder = tempfile::tempdir().unwrap();
    for address in [free(), Address::Unix(folder.path().join("s"))] {
        let first = Listener::bind("server.listen", &address, OPTIONS).unwrap();
        let error = Listener::bind("admin.listen", &first.address().unwrap(), OPTIONS).err().unwrap();
        assert!(error.to_string().contains("admin.listen"), "{error}");
        assert_eq!(error.cause.kind(), io::ErrorKind::AddrInUse);
    }
    std::fs::write(folder.path().join("file"), "kept").unwrap();
    assert!(Listener::bind("server.listen", &Address::Unix(folder.path().join("file")), OPTIONS).is_err());
    assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"kept");
}

#[tokio::test]
async fn a_unix_socket_has_its_mode_replaces_an_abandoned_one_and_goes_with_its_listener() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let address = Address::Unix(path.clone());
    let listener = Listener::bind("server.listen", &address, OPTIONS).unwrap();
    assert_eq!((path.metadata().unwrap().permissions().mode() & 0o7777, listener.address().unwrap()), (0o640, address.clone()));
    let (client, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
    let ((mut socket, peer), mut client) = (accepted.unwrap(), client.unwrap());
    socket.write_all(b"abc").await.unwrap();
    let mut got = [0; 3];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!((&got, peer), (b"abc", None));
    drop(listener);
    assert!(!path.exists());
    // Not the one of another process.
    let listener = Listener::bind("server.listen", &address, OPTIONS).unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = Listener::bind("server.listen", &address, OPTIONS).unwrap();
    drop(listener);
    assert!(path.exists());
    drop(other);
}
