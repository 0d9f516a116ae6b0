//! What can be typed.

mod files;

pub use files::FilesTask;

use clap::{Args, Parser, Subcommand};
use sempre_model::MemberId;
use std::{net::SocketAddr, path::PathBuf};

/// PostgreSQL, always on: redundancy, failover and routing in one binary.
#[derive(Debug, Parser)]
#[command(name = "sempre", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong input, 3 refused, 4 nobody answers or no majority, 5 took too long."
)]
pub struct Arguments {
    /// The member's config file
    #[arg(
        long,
        global = true,
        env = "SEMPRE_CONFIG",
        default_value = "/etc/sempre/sempre.toml",
        value_name = "FILE"
    )]
    pub config: PathBuf,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub task: Task,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Try it: three members on this machine, real PostgreSQL, routing; Ctrl-C ends it all
    Demo(DemoHow),
    /// Make a cluster, with this member as its first
    Init {
        /// The cluster's name
        #[arg(long, default_value = "main", value_name = "NAME")]
        cluster: String,
        /// A key of the policy, such as `durability=async` (docs/policy.md); may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print the right to join this cluster, good for one member
    Token {
        /// How long it is valid, such as `30min`, `1h`, `2d`
        #[arg(long, default_value = "1h", value_name = "TIME")]
        ttl: String,
    },
    /// Join a cluster, with a token that `sempre token` printed on one of its members
    Join {
        /// The token
        token: String,
        /// Bring the data from a repository (without a name: the only one), not from another member
        #[arg(long, value_name = "REPOSITORY", num_args = 0..=1, default_missing_value = "")]
        from_backup: Option<String>,
    },
    /// Run this member: the daemon
    Run(RunHow),
    /// Hold the lease deadline beside the database (started by `run`)
    #[command(hide = true)]
    Guard {
        /// The folder of its socket
        #[arg(long)]
        dir: PathBuf,
    },
    /// Show who is what, how far behind, and the reason for anything odd
    Status {
        /// Draw it again each second
        #[arg(long)]
        watch: bool,
    },
    /// Change the primary in an orderly way
    Switchover {
        /// The new primary; without: the best standby
        #[arg(long, value_name = "MEMBER")]
        to: Option<MemberId>,
        /// Not before this time, such as `2026-01-31T03:00:00Z`
        #[arg(long, value_name = "TIME", conflicts_with = "cancel")]
        at: Option<String>,
        /// Take back a switchover that has not begun
        #[arg(long, conflicts_with = "to")]
        cancel: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Replace the primary by hand
    Failover {
        /// The new primary
        #[arg(long, value_name = "MEMBER")]
        to: MemberId,
        /// Even if acknowledged commits are lost
        #[arg(long)]
        allow_data_loss: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Do nothing automatically from now on
    Pause,
    /// End `pause`
    Resume,
    /// Restart the database of a member
    Restart {
        /// Whose
        member: MemberId,
        /// Not now, but at this time, such as `2026-01-31T03:00:00Z`
        #[arg(long, value_name = "TIME", conflicts_with = "cancel")]
        at: Option<String>,
        /// Take back a restart that was scheduled with --at
        #[arg(long)]
        cancel: bool,
    },
    /// Have this member's database read its configuration again
    Reload,
    /// Give a member a fresh copy of the data
    Reinit {
        /// Whom
        member: MemberId,
        /// From a repository (without a name: the only one), over what it has, not from another member
        #[arg(long, value_name = "REPOSITORY", num_args = 0..=1, default_missing_value = "")]
        from_backup: Option<String>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Take a member out of the cluster
    Remove {
        /// Whom
        member: MemberId,
        /// Even if it is the primary, or the majority is at stake
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// The configuration that all members share: policy, PostgreSQL parameters, pg_hba lines
    Config {
        /// What to do with it.
        #[command(subcommand)]
        task: ConfigTask,
    },
    /// List the changes of primary
    History,
    /// List what happened
    Events {
        /// Go on with what happens from now on
        #[arg(long, short)]
        follow: bool,
    },
    /// Re-form the cluster from this member alone, when the majority is gone for good
    ///
    /// Says first what may be lost, and asks. The daemon of this member must not run.
    Recover {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Backups: repositories, base backups, what can be restored
    Backup {
        /// What to do.
        #[command(subcommand)]
        task: BackupTask,
    },
    /// Bring a database back, to any moment, into a folder of its own
    ///
    /// Runs as the config's `user` when started as root. The cluster goes on meanwhile.
    Restore(Box<RestoreHow>),
    /// Try it before it is needed
    Drill {
        /// What to try.
        #[command(subcommand)]
        task: DrillTask,
    },
    /// Do one job for an agent (started by `run`)
    #[command(hide = true)]
    Worker,
    /// Bring one file of WAL to a server that recovers (its `restore_command`)
    #[command(hide = true)]
    RestoreWal {
        /// Where `restore` serves from
        spool: PathBuf,
        /// The file
        file: String,
        /// Where to
        target: PathBuf,
    },
    /// The routing part alone
    Route {
        /// What to do.
        #[command(subcommand)]
        task: RouteTask,
    },
}

/// `sempre config ...`.
#[derive(Debug, Subcommand)]
pub enum ConfigTask {
    /// Show it
    Show,
    /// Change policy keys (`lease_ttl_ms=3s`) and PostgreSQL parameters
    /// (`postgresql.work_mem=64MB`; `postgresql.work_mem=` goes back to the server's own)
    Set {
        /// The changes
        #[arg(required = true, value_name = "KEY=VALUE")]
        changes: Vec<String>,
    },
    /// Change all of it in an editor ($VISUAL, $EDITOR)
    Edit,
}

/// `sempre backup ...`.
#[derive(Debug, Subcommand)]
pub enum BackupTask {
    /// Make a repository; from then on the cluster's WAL is kept in it
    Init {
        /// Its name
        name: String,
        /// In this folder: empty or absent, writable for the members' system user, and on another
        /// machine or disk than the databases (a network file system, say)
        #[arg(long, value_name = "PATH", required_unless_present = "s3")]
        folder: Option<PathBuf>,
        /// Where this member has that folder: it serves it to the others. Its config file must allow it
        #[arg(long, value_name = "MEMBER", requires = "folder")]
        on: Option<MemberId>,
        /// In this bucket of an S3-compatible store
        #[arg(
            long,
            value_name = "BUCKET[/PREFIX]",
            conflicts_with = "folder",
            requires = "s3_credentials"
        )]
        s3: Option<String>,
        /// Of this store, such as `https://s3.example.org:9000`; without: Amazon's own
        #[arg(long, value_name = "URL", requires = "s3")]
        s3_endpoint: Option<String>,
        /// Its region
        #[arg(long, value_name = "REGION", requires = "s3")]
        s3_region: Option<String>,
        /// A file with `aws_access_key_id = ...` and `aws_secret_access_key = ...`
        #[arg(long, value_name = "FILE", requires = "s3")]
        s3_credentials: Option<PathBuf>,
        /// Who signed the store's certificate, if the machine does not know it (PEM)
        #[arg(long, value_name = "FILE", requires = "s3")]
        s3_ca: Option<PathBuf>,
        /// Who can reach it there; without: every member
        #[arg(long = "member", value_name = "MEMBER")]
        members: Vec<MemberId>,
    },
    /// Keep nothing in a repository any more; what is in it stays
    Detach {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Make a base backup, of a standby where there is one
    Run {
        /// Where to, if there are several repositories
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
        /// Of this member
        #[arg(long, value_name = "MEMBER")]
        member: Option<MemberId>,
        /// Store everything anew, even what the backup before has (of files: read everything)
        #[arg(long)]
        full: bool,
        /// Of these files instead of the database (`backup files list`)
        #[arg(long, value_name = "NAME", conflicts_with_all = ["repository", "member"])]
        files: Option<String>,
    },
    /// Folders that are backed up beside the databases: uploads, configuration
    Files {
        /// What to do.
        #[command(subcommand)]
        task: FilesTask,
    },
    /// List the backups, and draw what can be restored
    List {
        /// Of this repository alone
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
    },
    /// Show one backup
    Show {
        /// Its name, the beginning of it, or `latest`
        backup: String,
        /// In this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
    },
    /// Forget a backup; says first what can no longer be restored then
    Forget {
        /// Its name, or the beginning of it
        backup: String,
        /// In this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Take it back that a backup was forgotten, while everything of it is still there
    Unforget {
        /// Its name, or the beginning of it
        backup: String,
        /// In this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
    },
    /// Keep a backup whatever is forgotten otherwise, or no longer (--release)
    Hold {
        /// Its name, or the beginning of it
        backup: String,
        /// In this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
        /// Why
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
        /// End the hold
        #[arg(long)]
        release: bool,
    },
    /// The alarms of a backup were looked into, and are no reason to worry
    Accept {
        /// Its name, the beginning of it, or `latest`
        backup: String,
        /// In this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
    },
    /// Read every object that backups use, and say whom damage harms; changes nothing
    Verify {
        /// This backup alone
        backup: Option<String>,
        /// In this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
    },
    /// Remove what the policy's `backup_keep_*` and `backup_window_ms` do not keep, with the WAL that
    /// nothing needs; done by itself after each backup, too
    Prune {
        /// In this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
        /// Show what would go, and why the rest stays
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Print the key that opens a repository: keep it where the machines are not
    Key {
        /// Of this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
        /// Replace it first: the old one opens nothing any more
        #[arg(long)]
        rotate: bool,
    },
}

/// `sempre drill ...`.
#[derive(Debug, Subcommand)]
pub enum DrillTask {
    /// Restore the newest backup with all its WAL into a spare folder, start it, check it with
    /// pg_amcheck, and keep the measured time; `status` compares it with `backup_rto_ms`
    Restore {
        /// The spare folder: empty or absent, with room for the database
        #[arg(long, value_name = "DIR")]
        target: PathBuf,
        /// From this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
        /// A further check: a command that is run with PGHOST, PGPORT and PGUSER set, and fails if
        /// something is wrong; may be repeated
        #[arg(long, value_name = "COMMAND")]
        check: Vec<String>,
        /// Leave what was restored where it is
        #[arg(long)]
        keep: bool,
        /// PostgreSQL's programs, if they are not found by themselves
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<PathBuf>,
    },
}

/// `sempre restore ...`.
#[derive(Debug, Args)]
pub struct RestoreHow {
    /// The folder to restore into: it becomes a data directory
    #[arg(long, value_name = "DIR")]
    pub target: PathBuf,
    /// Files instead of a database: those of this name, each below the target at the path it had. As root,
    /// owners come back too
    #[arg(long, value_name = "NAME", conflicts_with_all = ["goal", "backup", "delta", "instant", "tablespaces"])]
    pub files: Option<String>,
    /// This snapshot of the files (a name, or the beginning of it); without: the newest
    #[arg(long, value_name = "ID", requires = "files")]
    pub snapshot: Option<String>,
    /// To this moment, such as `2026-01-31T03:00:00Z`; what was committed later is left out
    #[arg(long, value_name = "TIME", group = "goal")]
    pub to_time: Option<String>,
    /// To this position
    #[arg(long, value_name = "LSN", group = "goal")]
    pub to_lsn: Option<sempre_model::Lsn>,
    /// To a restore point made with `pg_create_restore_point`
    #[arg(long, value_name = "NAME", group = "goal")]
    pub to_name: Option<String>,
    /// To this transaction, with it
    #[arg(long, value_name = "XID", group = "goal")]
    pub to_transaction: Option<u64>,
    /// To this transaction, without it
    #[arg(long, value_name = "XID", group = "goal")]
    pub before_transaction: Option<u64>,
    /// To the end of the base backup itself
    #[arg(long, group = "goal")]
    pub to_backup: bool,
    /// From this backup (a name, the beginning of it, or `latest`); without: the nearest before
    #[arg(long, value_name = "BACKUP")]
    pub backup: Option<String>,
    /// Over what is in the target: what is right stays, what differs is replaced, the rest goes
    #[arg(long)]
    pub delta: bool,
    /// Start the server at once, on the backup itself (by FUSE), and bring the files in behind it; it
    /// goes on on its own files. Leave this command running until it says so
    #[arg(long, conflicts_with = "delta")]
    pub instant: bool,
    /// The port of the server that --instant starts
    #[arg(long, value_name = "PORT", default_value_t = 5432, requires = "instant")]
    pub port: u16,
    /// The addresses it listens on
    #[arg(long, value_name = "ADDRESSES", default_value = "localhost", requires = "instant")]
    pub listen_addresses: String,
    /// From this repository of the cluster
    #[arg(long, value_name = "NAME", conflicts_with = "folder")]
    pub repository: Option<String>,
    /// From the repository in this folder, when no member answers any more
    #[arg(long, value_name = "PATH", requires = "key_file")]
    pub folder: Option<PathBuf>,
    /// The file with the key that `sempre backup key` printed
    #[arg(long, value_name = "FILE", requires = "folder")]
    pub key_file: Option<PathBuf>,
    /// From the repository that this file describes, as `sempre --json backup key` printed it, when no
    /// member answers any more
    #[arg(long, value_name = "FILE", conflicts_with_all = ["folder", "repository"])]
    pub place: Option<PathBuf>,
    /// Another place for a tablespace, by object id
    #[arg(long = "tablespace", value_name = "OID=DIR")]
    pub tablespaces: Vec<String>,
    /// PostgreSQL's programs, if they are not found by themselves
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// The system user to restore as, when started as root without a config file
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub user: String,
}

/// `sempre route ...`.
#[derive(Debug, Subcommand)]
pub enum RouteTask {
    /// Lead PostgreSQL clients on this machine to the right member
    Run(Box<RouteHow>),
}

/// `sempre route run ...`.
#[derive(Debug, Args)]
pub struct RouteHow {
    /// REST addresses of members, one or more of each; further members are learned from them
    #[arg(long, value_delimiter = ',', required = true, value_name = "HOST:PORT,...")]
    pub members: Vec<String>,
    /// Ask the members by TLS only, and believe those that this CA signed (`tls/ca.pem` of a member)
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Lead to the primary from here
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6432")]
    pub read_write: SocketAddr,
    /// Spread over standbys from here
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6433")]
    pub read_only: SocketAddr,
    /// What becomes of sessions when the primary changes
    #[arg(long, value_enum, default_value_t)]
    pub style: RouteStyle,
    /// The role that reads password verifiers, so that sessions with a password can be carried; it
    /// needs `GRANT SELECT ON pg_authid`
    #[arg(long, value_name = "ROLE", requires = "auth_password_file")]
    pub auth_user: Option<String>,
    /// The file with its password
    #[arg(long, value_name = "FILE", requires = "auth_user")]
    pub auth_password_file: Option<PathBuf>,
    /// How server connections are shared: a session keeps its own, or gives it back after each
    /// transaction
    #[arg(long, value_enum)]
    pub pool_mode: Option<RoutePool>,
    /// Server connections of one user and database; 0: no limit but the server's
    #[arg(long, value_name = "N")]
    pub pool_size: Option<usize>,
    /// Who may use the admin database `sempre`; may be repeated
    #[arg(long, value_name = "ROLE")]
    pub admin_user: Vec<String>,
    /// The certificate (with its chain, PEM) for clients that encrypt; without, TLS is between
    /// client and server
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Refuse clients that do not encrypt
    #[arg(long, requires = "cert")]
    pub require_tls: bool,
    /// Who signed the databases' certificates, if not --ca
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub database_ca: Option<PathBuf>,
    /// Find out, too, what became of single statements that write, when their answer is lost; each
    /// takes one more exchange with the server
    #[arg(long)]
    pub resolve_autocommit: bool,
    /// Which transactions of the read-write port standbys serve: none, or those that the client
    /// begins as READ ONLY
    #[arg(long, value_enum)]
    pub split: Option<RouteSplit>,
    /// Standbys serve them only once they have replayed what the session has committed (true)
    #[arg(long, value_name = "BOOL", requires = "split")]
    pub read_your_writes: Option<bool>,
    /// How long standbys are waited for, ms; then the primary serves the transaction
    #[arg(long, value_name = "MS", requires = "split")]
    pub read_your_writes_timeout_ms: Option<u64>,
    /// How logs look
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// When a server connection is given back.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum RoutePool {
    /// When the client leaves.
    Session,
    /// After each transaction.
    Transaction,
}

/// Which transactions of the read-write port standbys serve.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum RouteSplit {
    /// None.
    Off,
    /// Transaction blocks that the client begins as READ ONLY.
    ReadOnly,
}

/// What becomes of sessions when the primary changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum RouteStyle {
    /// They are carried to the next one.
    #[default]
    Carry,
    /// They end; bytes pass as they are.
    Pass,
}

/// `sempre run ...`.
#[derive(Debug, Args)]
pub struct RunHow {
    /// When told to stop, stop the database and its guard too (else both go on)
    #[arg(long)]
    pub stop_database: bool,
    /// How logs look; SEMPRE_LOG filters them (`debug`, `sempre_agent=trace,info`)
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Stop, with the database, when standard input ends: for a supervisor that must not leave
    /// anything behind, whatever ends it
    #[arg(long, hide = true)]
    pub stop_with_input: bool,
}

/// How logs look.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// A line of text.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// `sempre demo ...`.
#[derive(Debug, Args)]
pub struct DemoHow {
    /// Keep everything here; without: in a temporary folder that goes at the end
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The first port: routing has this and the next, member i those from +10*i
    #[arg(long, default_value_t = 7400, value_name = "PORT")]
    pub base_port: u16,
    /// How many members
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=7))]
    pub members: u8,
}
