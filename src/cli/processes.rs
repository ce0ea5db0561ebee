//! The bridges that run here, as Linux shows them in `/proc`: those of this PID namespace, and where each listens.
//!
//! Knows nothing of what they answer.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::client::reachable;
use crate::support::address::Address;

/// A process that serves.
#[derive(Debug)]
pub(super) struct Bridge {
    pub(super) pid: u32,
    folder: PathBuf,
}

/// The bridges other than this very process. `serves`: whether a command line is that of one.
pub(super) fn bridges(serves: impl Fn(Vec<OsString>) -> bool) -> Vec<Bridge> {
    bridges_in(Path::new("/proc"), serves)
}

fn bridges_in(proc: &Path, serves: impl Fn(Vec<OsString>) -> bool) -> Vec<Bridge> {
    let Ok(entries) = std::fs::read_dir(proc) else { return Vec::new() };
    let pid = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u32>().ok();
    // Containers are seen from outside of them.
    let namespace = |folder: &Path| std::fs::read_link(folder.join("ns/pid")).ok();
    let here = namespace(&proc.join("self"));
    // By the name, or whatever the file is called here.
    let program = |folder: &Path| std::fs::read_link(folder.join("exe")).ok();
    let this = program(&proc.join("self"));
    let is_bridge = |bridge: &Bridge| {
        let name = std::fs::read_to_string(bridge.folder.join("comm")).unwrap_or_default();
        let words = bridge.command_line();
        let elsewhere = namespace(&bridge.folder).is_some_and(|of| here.as_ref().is_some_and(|here| of != *here));
        let is_other = bridge.pid != std::process::id() && !elsewhere;
        let is_same = name.trim_end() == env!("CARGO_PKG_NAME") || (this.is_some() && program(&bridge.folder) == this);
        is_same && is_other && !words.is_empty() && serves(words)
    };
    let found = entries.filter_map(pid).map(|pid| Bridge { pid, folder: proc.join(pid.to_string()) });
    found.filter(is_bridge).collect()
}

impl Bridge {
    /// Empty for a process that has ended and was not collected.
    fn command_line(&self) -> Vec<OsString> {
        let line = std::fs::read(self.folder.join("cmdline")).unwrap_or_default();
        let line = line.strip_suffix(b"\0").unwrap_or(&line);
        if line.is_empty() { Vec::new() } else { line.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect() }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When it is another user's.
    pub(super) fn listens(&self) -> io::Result<Vec<Address>> {
        let mut inodes = Vec::new();
        for entry in std::fs::read_dir(self.folder.join("fd"))? {
            // One that was closed meanwhile is not there any more.
            let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
            inodes.extend(inode);
        }
        let mut found = Vec::new();
        for table in ["net/tcp", "net/tcp6"] {
            let text = self.table(table);
            let listening = text.lines().skip(1).filter_map(listening).filter(|(_, inode)| inodes.contains(inode));
            found.extend(listening.map(|(address, _)| Address::Tcp(address)));
        }
        // A path is shown as it was bound, which may be a relative one.
        let begin = std::fs::read_link(self.folder.join("cwd")).unwrap_or_default();
        let text = self.table("net/unix");
        let listening = text.lines().skip(1).filter_map(listening_at).filter(|(_, inode)| inodes.contains(inode));
        found.extend(listening.map(|(path, _)| Address::Unix(begin.join(path))));
        Ok(found)
    }

    fn table(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.join(name)).unwrap_or_default()).into_owned()
    }
}

/// The local address and the inode of a line of `/proc/net/tcp` or `tcp6`, if that socket listens.
fn listening(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (local, state, inode) = (fields.nth(1)?, fields.nth(1)?, fields.nth(5)?);
    let (ip, port) = local.split_once(':')?;
    // Words of 32 bits, each in the machine's order.
    let words = |text: &str| -> Option<Vec<u8>> {
        let word = |at| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
        Some((0..text.len()).step_by(8).map(word).collect::<Option<Vec<_>>>()?.concat())
    };
    let bytes = words(ip)?;
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    let listen = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
    (state == LISTEN).then_some((reachable(listen), inode.parse().ok()?))
}

/// The path and the inode of a line of `/proc/net/unix`, if that socket listens and has a file.
fn listening_at(line: &str) -> Option<(&str, u64)> {
    /// `__SO_ACCEPTCON`
    const LISTENS: u32 = 1 << 16;
    let mut fields = line.splitn(7, ' ');
    let (flags, rest) = (fields.nth(3)?, fields.nth(2)?);
    // The inode is padded with spaces.
    let (inode, path) = rest.trim_start().split_once(' ')?;
    // A name that begins with `@` is not a file.
    let listens = u32::from_str_radix(flags, 16).ok()? & LISTENS != 0 && !path.starts_with('@') && !path.is_empty();
    listens.then_some((path, inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn a_listening_socket_is_read_from_the_systems_table() {
        let rest = "00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0";
        let read = |local: &str, state: &str| listening(&format!("   0: {local} 00000000:0000 {state} {rest}"));
        assert_eq!(read("0100007F:1F91", "0A"), Some(("127.0.0.1:8081".parse().unwrap(), 4711)));
        assert_eq!(read("00000000:1F91", "0A"), Some(("127.0.0.1:8081".parse().unwrap(), 4711)));
        assert_eq!(read("0100007F:1F91", "01"), None);
        assert_eq!(read("00000000000000000000000001000000:0050", "0A"), Some(("[::1]:80".parse().unwrap(), 4711)));
        assert_eq!(read("0000000000000000FFFF00000100007F:0050", "0A"), Some(("127.0.0.1:80".parse().unwrap(), 4711)));
        assert_eq!(listening("sl  local_address rem_address st"), None);
        assert_eq!(listening(""), None);
    }

    #[test]
    fn a_listening_unix_socket_is_read_from_the_systems_table() {
        let read = |flags: &str, rest: &str| {
            let line = format!("0000000000000000: 00000002 00000000 {flags} 0001 01 {rest}");
            listening_at(&line).map(|(path, inode)| (path.to_owned(), inode))
        };
        assert_eq!(read("00010000", "4711 /run/a b.sock"), Some(("/run/a b.sock".to_owned(), 4711)));
        assert_eq!(read("00010000", "   47 a.sock"), Some(("a.sock".to_owned(), 47)));
        assert_eq!(read("00000000", "4711 /run/a.sock"), None);
        assert_eq!(read("00010000", "4711 @abstract"), None);
        assert_eq!(read("00010000", "4711"), None);
        assert_eq!(listening_at("Num       RefCount Protocol Flags    Type St Inode Path"), None);
        assert_eq!(listening_at(""), None);
    }

    #[test]
    fn this_process_listens_where_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let this = Bridge { pid: std::process::id(), folder: PathBuf::from("/proc/self") };
        let listens = this.listens().unwrap();
        assert!(listens.contains(&Address::Tcp(listener.local_addr().unwrap())) && listens.contains(&Address::Unix(path)), "{listens:?}");
        assert!(!this.command_line().is_empty());
    }

    #[test]
    fn only_processes_of_the_name_or_the_same_file_that_serve_are_bridges() {
        let folder = tempfile::tempdir().unwrap();
        let process = |pid: &str, name: &str, line: &str| {
            std::fs::create_dir(folder.path().join(pid)).unwrap();
            std::fs::write(folder.path().join(pid).join("comm"), format!("{name}\n")).unwrap();
            std::fs::write(folder.path().join(pid).join("cmdline"), line).unwrap();
        };
        process("1000001", "brokercast", "brokercast\0--config\0a.yaml\0");
        process("1000002", "brokercast", "brokercast\0tail\0a\0");
        process("1000003", "nginx", "nginx\0");
        process("1000004", "brokercast", "");
        process("net", "brokercast", "brokercast\0");
        // In a container, and outside of it as the one that asks.
        process("1000005", "brokercast", "brokercast\0--config\0a.yaml\0");
        process("self", "brokercast", "brokercast\0health\0");
        for (pid, namespace) in [("self", "pid:[1]"), ("1000001", "pid:[1]"), ("1000005", "pid:[2]")] {
            std::fs::create_dir(folder.path().join(pid).join("ns")).unwrap();
            std::os::unix::fs::symlink(namespace, folder.path().join(pid).join("ns/pid")).unwrap();
        }
        process("1000006", "bridge", "bridge\0--config\0a.yaml\0");
        for pid in ["self", "1000006"] {
            std::os::unix::fs::symlink("/opt/bridge", folder.path().join(pid).join("exe")).unwrap();
        }
        let mut found = bridges_in(folder.path(), |line| line.get(1).is_none_or(|word| word == "--config"));
        found.sort_by_key(|bridge| bridge.pid);
        assert_eq!(found.iter().map(|bridge| bridge.pid).collect::<Vec<_>>(), [1_000_001, 1_000_006]);
    }
}
