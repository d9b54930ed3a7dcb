//! An ssh server on this machine, with keys of its own.

use super::servers::{Missing, Server, await_that, find, free_ports};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use tempfile::TempDir;

pub struct Sshd {
    _server: Server,
    port: u16,
    dir: TempDir,
}

impl Sshd {
    pub fn start() -> Result<Sshd, Missing> {
        let (sshd, keygen) = (find("sshd")?, find("ssh-keygen")?);
        find("ssh")?;
        let dir = tempfile::Builder::new().prefix("sshd").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["host", "user"] {
            let mut command = Command::new(&keygen);
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(name));
            assert!(command.status().unwrap().success());
        }
        fs::copy(at("user.pub"), at("authorized")).unwrap();
        fs::set_permissions(at("authorized"), fs::Permissions::from_mode(0o600)).unwrap();
        let [port] = free_ports();
        let mut command = match needs_a_directory() {
            false => Command::new(&sshd),
            // In a place that only it sees.
            true => {
                let mut command = Command::new(find("unshare")?);
                let script = "mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec \"$0\" \"$@\"";
                command.args(["--mount", "sh", "-c", script]).arg(&sshd);
                command
            }
        };
        command.args(["-D", "-e", "-f", "/dev/null", "-p", &port.to_string()]).arg("-h").arg(at("host"));
        for option in [
            format!("AuthorizedKeysFile={}", at("authorized").display()),
            format!("PidFile={}", at("pid").display()),
            "ListenAddress=127.0.0.1".into(),
            "PermitRootLogin=yes".into(),
            "StrictModes=no".into(),
            "UsePAM=no".into(),
            "PasswordAuthentication=no".into(),
            "MaxStartups=100".into(),
        ] {
            command.arg("-o").arg(option);
        }
        let mut server = Server::start(&mut command, &at("sshd.out"));
        await_that("the ssh server listens", || {
            assert!(!server.has_ended(), "{}", fs::read_to_string(at("sshd.out")).unwrap());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Ok(Sshd { _server: server, port, dir })
    }

    /// The options that lead here, and touch nothing of the user's.
    pub fn options(&self) -> Vec<String> {
        let key = self.dir.path().join("user").display().to_string();
        let mut options = vec!["-F".into(), "/dev/null".into(), "-p".into(), self.port.to_string()];
        options.extend(["-i".into(), key]);
        for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"] {
            options.extend(["-o".into(), option.into()]);
        }
        options
    }
}

/// Debian's server wants one that its service makes, unless it runs as an ordinary user.
fn needs_a_directory() -> bool {
    rustix::process::getuid().is_root() && !fs::exists("/run/sshd").unwrap()
}
