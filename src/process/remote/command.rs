//! The command lines that start a steward.

use crate::process::child::MARKER;
use crate::process::launcher::{Launcher, Way};
use crate::process::steward::STEWARD;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::Command;

impl Launcher {
    /// What the launcher is called, for people.
    pub(super) fn name(&self) -> String {
        let name = match &self.way {
            Way::Local => "env".into(),
            Way::Slurm => "srun".into(),
            Way::Ssh(host) => format!("ssh {}", host.to_string_lossy()),
            Way::Command(prefix) => {
                prefix.first().map_or("", |name| name.to_str().unwrap_or("?")).to_string()
            }
        };
        name.chars().filter(|c| !c.is_control()).collect()
    }

    /// The command that starts a steward.
    pub(super) fn to_command(&self) -> Command {
        let client = |name: &str| {
            self.client.as_ref().map_or_else(|| name.into(), |path| path.clone().into_os_string())
        };
        let mut words: Vec<OsString> = Vec::new();
        let program = self.far_program().into_os_string();
        let far = [OsString::from("env"), format!("{MARKER}={STEWARD}").into(), program];
        match &self.way {
            Way::Local => words.extend(far),
            Way::Slurm => {
                words.push(client("srun"));
                words.extend(["--nodes=1", "--ntasks=1"].map(OsString::from));
                // Within an allocation a step would otherwise have all that this has on its machine.
                if std::env::var_os("SLURM_JOB_ID").is_some() {
                    words.push("--exact".into());
                }
                // Otherwise the last bytes of a frame may stay where they are.
                if self.over_stdio {
                    words.push("--unbuffered".into());
                }
                words.extend(self.options.iter().cloned());
                words.extend(far);
            }
            Way::Ssh(host) => {
                words.push(client("ssh"));
                // Nobody is there to be asked, nor is there a terminal.
                words.extend(["-T", "-o", "BatchMode=yes"].map(OsString::from));
                words.extend(self.options.iter().cloned());
                words.extend(["--".into(), host.clone()]);
                // It is a shell there that takes these apart again.
                words.push("exec".into());
                words.extend(far.iter().map(|word| quoted(word)));
            }
            Way::Command(prefix) => {
                words.extend(prefix.iter().cloned());
                words.extend(far);
            }
        }
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    fn far_program(&self) -> std::path::PathBuf {
        // Without a path of its own there is nothing that could be found elsewhere.
        self.program
            .clone()
            .or_else(|| std::env::current_exe().ok())
            .unwrap_or_else(|| "/proc/self/exe".into())
    }
}

/// A word as a shell takes it.
fn quoted(word: &OsStr) -> OsString {
    let mut bytes = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => bytes.extend(br"'\''"),
            byte => bytes.push(*byte),
        }
    }
    bytes.push(b'\'');
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(launcher: Launcher) -> Vec<String> {
        let command = launcher.program("/opt/it's here").to_command();
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn each_way_has_its_command() {
        let far = ["env", "PROCESSION_ROLE=steward", "/opt/it's here"];
        let given = words(Launcher::command(["docker", "exec", "-i", "it"]));
        assert_eq!(given, [&["docker", "exec", "-i", "it"][..], &far].concat());
        let slurm = words(Launcher::slurm().option("-p").option("fast").client("/opt/srun"));
        assert_eq!(slurm[0], "/opt/srun");
        assert!(slurm.ends_with(&["-p", "fast", far[0], far[1], far[2]].map(String::from)));
        let ssh = words(Launcher::ssh("me@there").option("-p22"));
        let end =
            ["-p22", "--", "me@there", "exec", "'env'", "'PROCESSION_ROLE=steward'", r"'/opt/it'\''s here'"];
        assert!(ssh.ends_with(&end.map(String::from)), "{ssh:?}");
    }

    #[test]
    fn a_shell_takes_a_quoted_word_for_what_it_was() {
        for word in ["a b", "it's", "$HOME `id` \"\\", "", "'"] {
            let line = format!("printf %s {}", quoted(word.as_ref()).to_string_lossy());
            let output = Command::new("sh").args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
