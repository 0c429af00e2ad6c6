//! No setting is without an effect: whatever is ignored, or stands where nobody reads it, stops the start and is named.

use crate::support::process::{Process, command, run};

const NO_VALUE: &str = "hunter2-hunter2-hunter2-hunter2-hunter2";

/// What a command says that must not succeed, with this file and environment.
fn complaint(arguments: &[&str], file: &str, environment: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("Rocket.toml"), file).unwrap();
    let mut command = command(folder.path());
    let output = run(command
        .args(arguments)
        .envs(environment.iter().copied())
        .env("RUST_BACKTRACE", "0"));
    let complaint = String::from_utf8(output.stderr).unwrap();
    let case = format!("{arguments:?} {file} {environment:?}: {complaint}");
    assert_eq!(output.status.code(), Some(1), "{case}");
    assert!(complaint.starts_with("tidings: "), "{case}");
    assert!(!complaint.contains(NO_VALUE), "{case}");
    assert!(!folder.path().join("data/tidings.db").exists(), "{case}");
    complaint
}

fn rejected(file: &str, words: &[&str]) {
    let complaint = complaint(&["serve"], file, &[]);
    for word in words {
        assert!(complaint.contains(word), "{word} is not in: {complaint}");
    }
}

#[test]
fn a_setting_in_a_wrong_table_is_named_with_the_right_one() {
    let setting = "heartbeat_secs = 5\n";
    for (file, words) in [
        (
            format!("[tidings]\n{setting}"),
            ["`[tidings]`", "`[default.tidings]`"],
        ),
        (
            format!("[default]\n{setting}"),
            ["default.heartbeat_secs", "`[default.tidings]`"],
        ),
        (
            format!("[global]\n{setting}"),
            ["global.heartbeat_secs", "`[default.tidings]`"],
        ),
        (
            format!("[release]\n{setting}"),
            ["release.heartbeat_secs", "`[default.tidings]`"],
        ),
        (setting.to_owned(), ["`heartbeat_secs`", "`[default]`"]),
        (
            format!("jwt_secret = \"{NO_VALUE}\"\n"),
            ["`jwt_secret`", "`[default]`"],
        ),
        (
            "[[notifiers]]\nname = \"a\"\n".into(),
            ["`[[notifiers]]`", "`[default]`"],
        ),
        (
            "[notifiers]\nname = \"a\"\n".into(),
            ["`[notifiers]`", "`[default.notifiers]`"],
        ),
        (
            "[tls]\ncerts = \"a\"\nkey = \"b\"\n".into(),
            ["`[tls]`", "`[default.tls]`"],
        ),
        (
            "[shutdown]\ngrace = 1\n".into(),
            ["`[shutdown]`", "`[default.shutdown]`"],
        ),
        (
            "[default.tidings]\nport = 80\n".into(),
            ["default.tidings.port", "`[default]`"],
        ),
        (
            format!("[default.tidings.tls]\nkey = \"{NO_VALUE}\"\n"),
            ["default.tidings.tls", "`[default]`"],
        ),
        (
            format!("[default.tiding]\n{setting}"),
            ["default.tiding", "did you mean `tidings`"],
        ),
        (
            format!("[defualt.tidings]\n{setting}"),
            ["`[defualt]`", "`[default]`"],
        ),
        (
            format!("[production.tidings]\n{setting}"),
            ["`[production]`", "ROCKET_PROFILE=production"],
        ),
        (
            "[default]\ntidings = 5\n".into(),
            ["default.tidings", "table"],
        ),
        ("[default]\ntls = 5\n".into(), ["default.tls", "table"]),
    ] {
        rejected(&file, &words);
    }
}

#[test]
fn a_setting_that_this_build_ignores_is_named() {
    let secret = format!("[default]\nsecret_key = \"{NO_VALUE}\"\n");
    for (file, words) in [
        (&*secret, ["default.secret_key", "no effect"]),
        (
            "[default]\ntemplate_dir = \"t\"\n",
            ["default.template_dir", "not known"],
        ),
        (
            "[default]\ntemp_dir = \"t\"\n",
            ["default.temp_dir", "no effect"],
        ),
        (
            "[default]\nlog_level = \"debug\"\n",
            ["default.log_level", "TIDINGS_LOG"],
        ),
        (
            "[default]\ncli_colors = false\n",
            ["default.cli_colors", "terminal"],
        ),
        (
            "[default]\nkeep_alive = 60\n",
            ["default.keep_alive", "no effect"],
        ),
        ("[default]\nPort = 80\n", ["default.Port", "not known"]),
        ("[debug]\nprt = 80\n", ["debug.prt", "not known"]),
        (
            "[default.databases.main]\nurl = \"x\"\n",
            ["default.databases", "not known"],
        ),
        (
            "[default.limits]\njson = \"1MiB\"\n",
            ["default.limits.json", "body_limit_bytes"],
        ),
        (
            "[default.shutdown]\ngrase = 1\n",
            ["default.shutdown.grase", "not known"],
        ),
        (
            "[default.tls.mutual]\nca_certs = \"a\"\n",
            ["default.tls.mutual", "not supported"],
        ),
        (
            "[default.tls]\ncertificate = \"a\"\n",
            ["default.tls.certificate", "not known"],
        ),
        (
            "[default.tls]\ncerts = \"a\"\nkey = \"b\"\nciphers = []\n",
            ["default.tls.ciphers", "empty"],
        ),
        (
            "[release.tidings]\nheartbeets = 3\n",
            ["release.tidings.heartbeets", "Rocket.toml"],
        ),
    ] {
        rejected(file, &words);
    }
}

#[test]
fn an_environment_variable_that_nothing_reads_is_named_by_every_command_that_reads_settings() {
    for (name, value) in [
        ("ROCKET_FOO", NO_VALUE),
        ("ROCKET_SECRET_KEY", NO_VALUE),
        ("ROCKET_HEARTBEAT_SECS", "5"),
        ("ROCKET_TEMPLATE_DIR", "t"),
        ("ROCKET_LOG_LEVEL", "debug"),
        ("ROCKET_LIMITS", "{json=5}"),
        ("ROCKET_TLS", NO_VALUE),
        (
            "ROCKET_TLS",
            "{certs=\"a\",key=\"b\",mutual={ca_certs=\"c\"}}",
        ),
        ("ROCKET_TIDINGS", "{heartbeets=5}"),
        ("ROCKET_CONFIG", "nowhere.toml"),
        ("TIDINGS_FOO", NO_VALUE),
        ("TIDINGS_PORT", "80"),
    ] {
        let token = ["token", "--school", "1", "--role", "viewer"];
        for arguments in [&["serve"][..], &["demo", "--exit"], &token] {
            let complaint = complaint(arguments, "", &[(name, value)]).to_uppercase();
            let named = name.strip_prefix("TIDINGS_").unwrap_or(name);
            assert!(complaint.contains(named), "{name}: {complaint}");
        }
    }
}

#[test]
fn a_setting_of_rockets_that_cannot_be_used_is_named_without_its_value() {
    for (name, value) in [
        ("ROCKET_PORT", NO_VALUE),
        ("ROCKET_ADDRESS", NO_VALUE),
        ("ROCKET_WORKERS", "0"),
        ("ROCKET_MAX_BLOCKING", "0"),
        ("ROCKET_KEEP_ALIVE", NO_VALUE),
        (
            "ROCKET_SHUTDOWN",
            "{grace=\"hunter2-hunter2-hunter2-hunter2-hunter2\"}",
        ),
        ("ROCKET_TLS", "{certs=\"a\"}"),
    ] {
        let complaint = complaint(&["serve"], "", &[(name, value)]).to_uppercase();
        let named = name.trim_start_matches("ROCKET_");
        assert!(complaint.contains(named), "{name}: {complaint}");
    }
    rejected(
        &format!("[default.tidings]\njwt_secret = {NO_VALUE}\n"),
        &["line 2", "jwt_secret"],
    );
}

#[test]
fn a_value_that_cannot_be_used_is_reported_in_a_sentence_with_its_key_and_place() {
    let number = "an integer";
    for (name, value, words) in [
        ("ROCKET_WORKERS", "0", ["`workers`", "from 1 to 1024"]),
        ("ROCKET_WORKERS", "-1", ["`workers`", "from 1 to 1024"]),
        ("ROCKET_WORKERS", "100000", ["`workers`", "from 1 to 1024"]),
        ("ROCKET_WORKERS", "some", ["`workers`", "from 1 to 1024"]),
        (
            "ROCKET_LIMITS",
            "{data-form=-5}",
            ["`limits.data-form`", "64KiB"],
        ),
        ("ROCKET_LIMITS", "{string=-1}", ["`limits.string`", "64KiB"]),
        ("TIDINGS_JWT_SECRET", "123", ["`jwt_secret`", "32 bytes"]),
        ("TIDINGS_JWT_SECRET", "true", ["`jwt_secret`", "32 bytes"]),
        ("TIDINGS_COOKIE_NAME", "1 2", ["`cookie_name`", "cookie"]),
        ("TIDINGS_JWT_ALGORITHM", "5", ["`jwt_algorithm`", "HS256"]),
        ("TIDINGS_JWT_ROLES", "[]", ["`jwt_roles`", "a table"]),
        (
            "TIDINGS_JWT_JWKS_FILE",
            "/nowhere",
            ["`jwt_jwks_file`", "No such file"],
        ),
        (
            "TIDINGS_JWT_JWKS_FILE",
            "7",
            ["`jwt_jwks_file`", "No such file"],
        ),
        (
            "TIDINGS_DATABASE_URL",
            "/nowhere/x",
            ["`database_url`", "no folder"],
        ),
        ("TIDINGS_DATABASE_URL", "/", ["`database_url`", "a folder"]),
        (
            "TIDINGS_BUS_URL",
            "redis://bus",
            ["`bus_url`", "a database that several nodes can share"],
        ),
        ("TIDINGS_BUS_URL", "6379", ["`bus_url`", "is not a URL"]),
        (
            "TIDINGS_DATA_DIR",
            "/proc/nowhere",
            ["`data_dir`", "/proc/nowhere"],
        ),
        ("TIDINGS_NOPE", "1", ["`nope`", "docs/configuration.md"]),
        (
            "TIDINGS_HEARTBEAT_SEC",
            "1",
            ["`heartbeat_sec`", "did you mean `heartbeat_secs`"],
        ),
        ("ROCKET_PROT", "1", ["`prot`", "did you mean `port`"]),
        (
            "ROCKET_MAX_BLOCKING",
            "99999999",
            ["`max_blocking`", "from 1 to"],
        ),
        ("ROCKET_PORT", "99999", ["`port`", "from 0 to 65535"]),
        ("ROCKET_ADDRESS", "localhost", ["`address`", "IP address"]),
        (
            "ROCKET_SHUTDOWN",
            "{grace=-1}",
            ["`shutdown.grace`", number],
        ),
        ("ROCKET_LIMITS", "{form=\"x\"}", ["`limits.form`", "64KiB"]),
        ("ROCKET_IDENT", "a\nb", ["`ident`", "a string"]),
        ("TIDINGS_TICK_MS", "", ["`tick_ms`", number]),
        (
            "TIDINGS_HEARTBEAT_SECS",
            "0",
            ["`heartbeat_secs`", "from 1 to 3600"],
        ),
        (
            "TIDINGS_HEARTBEAT_SECS",
            "-1",
            ["`heartbeat_secs`", "from 1 to 3600"],
        ),
        (
            "TIDINGS_HEARTBEAT_SECS",
            "3601",
            ["`heartbeat_secs`", "from 1 to 3600"],
        ),
        (
            "TIDINGS_CHECK_DATABASE",
            "maybe",
            ["`check_database`", "true or false"],
        ),
        ("TIDINGS_SYNCHRONOUS", "5", ["`synchronous`", "`milestone`"]),
        (
            "TIDINGS_STATUS_CASE",
            "x",
            ["`status_case`", "`lower`, `upper`"],
        ),
        (
            "TIDINGS_READER_CONNECTIONS",
            "4294967295",
            ["`reader_connections`", "from 1 to 1024"],
        ),
        (
            "TIDINGS_WINDOW_EVENTS",
            "18446744073709551615",
            ["`window_events`", "from 1 to 100000000"],
        ),
        ("TIDINGS_COOKIE_NAME", "a b", ["`cookie_name`", "cookie"]),
        ("TIDINGS_DATA_DIR", "", ["`data_dir`", "empty"]),
        (
            "TIDINGS_NOTIFIERS",
            "[{}]",
            ["`notifiers.0`", "`name` is missing"],
        ),
        (
            "TIDINGS_DATABASE_URL",
            ":memory:",
            ["`database_url`", "sqlite:<path>"],
        ),
        ("TIDINGS_LOG", "a=b=c", ["TIDINGS_LOG", "debug"]),
    ] {
        let complaint = complaint(&["serve"], "", &[(name, value)]);
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
        assert!(complaint.len() < 300, "one short sentence: {complaint}");
        for word in words.into_iter().chain([name]) {
            assert!(
                complaint.contains(word),
                "{name}={value}: {word} is not in: {complaint}"
            );
        }
    }
    for (file, word) in [
        ("[default", "line 1"),
        ("x", "line 1"),
        ("default = 5\n", "`default`"),
        ("[default]\nport = 1\nport = 2\n", "`port`"),
        ("[default]\nworkers = 0\n", "`workers`"),
        ("[default]\nworkers = []\n", "`workers`"),
        (
            "[default.tidings]\nheartbeat_secs = 0\n",
            "`heartbeat_secs`",
        ),
        (
            "[default.limits]\n\"data-form\" = -5\n",
            "`default.limits.data-form`",
        ),
        (
            "[default.tidings]\ncookie_name = \"a b\"\n",
            "`cookie_name`",
        ),
        (
            "[default.tidings]\nheartbeat_sec = 5\n",
            "did you mean `heartbeat_secs`",
        ),
        ("[default.tidings]\ndatabase_url = 5\n", "`database_url`"),
        ("[default.tidings]\nnotifiers = \"x\"\n", "`notifiers`"),
    ] {
        for arguments in [
            &["serve"][..],
            &["demo", "--exit"],
            &["token", "--role", "admin"],
        ] {
            let complaint = complaint(arguments, file, &[]);
            assert_eq!(complaint.lines().count(), 1, "{complaint}");
            assert!(
                complaint.contains(word) && complaint.contains("Rocket.toml"),
                "{file}: {complaint}"
            );
        }
    }
}

/// They are read when the server listens, after the log has begun.
#[test]
fn tls_files_that_cannot_be_used_are_reported_with_the_settings_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path());
    let files = "{certs=\"a\",key=\"b\"}";
    let output = run(command.arg("serve").env("ROCKET_TLS", files));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let named = "tidings: the files in the setting `tls` (ROCKET_TLS in the environment)";
    assert!(
        complaint.lines().last().unwrap().starts_with(named),
        "{complaint}"
    );
}

#[test]
#[ignore = "slow: real seconds pass"]
fn a_database_is_made_in_a_folder_that_exists_or_in_data_dir_and_nowhere_else() {
    for (url, file) in [
        ("own.db", "own.db"),
        ("./own.db", "own.db"),
        ("sqlite:own.db", "own.db"),
        ("sqlite://data/own.db", "data/own.db"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(folder.path());
        let mut server = Process::start(command.arg("serve").env("TIDINGS_DATABASE_URL", url));
        assert_eq!(server.terminate(), Some(0));
        assert!(folder.path().join(file).exists(), "{url}");
    }
    for url in [
        "sqlite:nowhere/own.db",
        "nowhere/own.db",
        "data/deeper/own.db",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(folder.path());
        command
            .env("TIDINGS_DATABASE_URL", url)
            .env_remove("TIDINGS_JWT_SECRET");
        let output = run(command.arg("serve"));
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        let missing = folder.path().join(url.trim_start_matches("sqlite:"));
        let missing = missing.parent().unwrap().display().to_string();
        assert!(
            complaint.contains(&missing) && complaint.contains("database_url"),
            "{complaint}"
        );
        let begun = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(begun, 0, "nothing was begun");
    }
}

#[test]
#[ignore = "slow: real seconds pass"]
fn settings_of_profiles_and_of_rocket_that_have_an_effect_are_accepted() {
    let all = "[default]\naddress = \"127.0.0.1\"\nworkers = 2\nmax_blocking = 64\nident = false\nip_header = false\nkeep_alive = 0\n\
         [default.limits]\nform = \"8KiB\"\n[default.shutdown]\ngrace = 1\nmercy = 1\nsignals = [\"term\"]\nctrlc = true\nforce = true\n\
         [default.tidings]\nheartbeat_secs = 5\n[debug.tidings]\ntick_ms = 1\n[release.tidings]\ntick_ms = 2\n[global.tidings]\nwindow_events = 9\n";
    let custom = "[staging.tidings]\ntick_ms = 1\n[production.tidings]\ntick_ms = 2\n";
    for (file, environment) in [
        (all, &[][..]),
        (custom, &[("ROCKET_PROFILE", "staging")]),
        (custom, &[("ROCKET_PROFILE", "release")]),
        ("", &[("ROCKET_PROFILE", "production")]),
        ("", &[("ROCKET_TIDINGS", "{heartbeat_secs=5}")]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Own.toml"), file).unwrap();
        let mut command = command(folder.path());
        command
            .arg("serve")
            .env("ROCKET_CONFIG", "Own.toml")
            .envs(environment.iter().copied());
        let mut server = Process::start(&mut command);
        assert_eq!(server.terminate(), Some(0), "{file} {environment:?}");
    }
    let complaint = complaint(&["serve"], custom, &[("ROCKET_PROFILE", "stagging")]);
    assert!(
        complaint.contains("`[stagging]`") && complaint.contains("ROCKET_PROFILE"),
        "{complaint}"
    );
}

/// Another application's settings are its own business; the table of Tidings is not.
#[test]
fn an_application_that_mounts_tidings_keeps_its_own_settings() {
    use rocket::figment::Figment;
    use tidings::config::Settings;
    let figment = Figment::new()
        .merge(("template_dir", "t"))
        .merge(("secret_key", "s"));
    assert!(Settings::from_figment(&figment).is_ok());
    for (key, value) in [("tidings.heartbeets", 5), ("tidings", 5)] {
        let error = Settings::from_figment(&figment.clone().merge((key, value))).unwrap_err();
        let named = key.rsplit('.').next().unwrap();
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn memory_in_which_the_largest_write_would_never_find_room_is_rejected() {
    use rocket::figment::Figment;
    use tidings::config::Settings;
    let read = |settings: &[(&str, u64)]| {
        let merge = |figment: Figment, (key, value): &(&str, u64)| {
            figment.merge((format!("tidings.{key}"), *value))
        };
        let figment = settings.iter().fold(Figment::new(), merge);
        Settings::from_figment(&figment)
    };
    for setting in [
        ("batch_event_bytes", 256 * 1024 * 1024),
        ("body_limit_bytes", 256 * 1024 * 1024),
        ("metadata_limit_bytes", 256 * 1024 * 1024),
        ("message_limit_bytes", 256 * 1024 * 1024),
    ] {
        let error = read(&[setting]).unwrap_err().to_string();
        let names_both = error.contains("write_memory_bytes") && error.contains(setting.0);
        assert!(names_both, "{error}");
        let least = error.split("must be at least ").nth(1).unwrap();
        let least = least.split(',').next().unwrap().parse().unwrap();
        assert!(read(&[setting, ("write_memory_bytes", least)]).is_ok());
        assert!(read(&[setting, ("write_memory_bytes", least - 1)]).is_err());
    }
}

/// A secret, a path or an issuer may consist of digits.
#[test]
fn a_text_of_digits_in_the_environment_needs_no_quotes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("TIDINGS_JWT_SECRET", "01234567890123456789012345678901"),
        ("TIDINGS_JWT_ISSUER", "0123"),
        ("TIDINGS_JWT_AUDIENCE", "12.50"),
        ("TIDINGS_JWT_ISSUER", "true"),
        ("TIDINGS_JWT_SUBJECT_CLAIM", "7"),
        ("TIDINGS_COOKIE_NAME", "123"),
        ("TIDINGS_DATA_DIR", "456"),
    ] {
        for value in [value.to_owned(), format!("\"{value}\"")] {
            let mut command = command(folder.path());
            command
                .args(["token", "--school", "1", "--role", "viewer"])
                .env(name, &value);
            let output = run(&mut command);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{name}={value}: {stderr}");
            let token = String::from_utf8(output.stdout).unwrap();
            let claims = token.split('.').nth(1).unwrap();
            let claims =
                base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims)
                    .unwrap();
            let claims = String::from_utf8(claims).unwrap();
            let unquoted = value.trim_matches('"');
            if name.ends_with("ISSUER") || name.ends_with("AUDIENCE") {
                assert!(claims.contains(&format!(":\"{unquoted}\"")), "{claims}");
            }
        }
    }
}

#[test]
fn the_nearest_rocket_toml_at_or_above_the_folder_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("a/b");
    std::fs::create_dir_all(&inner).unwrap();
    let start = || {
        let mut command = command(folder.path());
        run(command.arg("serve").current_dir(&inner))
    };
    for (file, setting) in [("Rocket.toml", "outer"), ("a/Rocket.toml", "nearer")] {
        let wrong = format!("[default.tidings]\n{setting} = 1\n");
        std::fs::write(folder.path().join(file), wrong).unwrap();
        let stderr = String::from_utf8(start().stderr).unwrap();
        assert!(stderr.contains(setting), "{stderr}");
    }
}

#[test]
fn settings_show_no_secret_in_a_log_or_when_they_are_serialised() {
    use serde_json::json;
    let folder = tempfile::tempdir().unwrap();
    let whsec = "whsec_aHVudGVyMi1odW50ZXIyLWh1bnRlcjItaHVudGVyMg==";
    let notifiers = json!([
        {
            "name": "hook",
            "webhook": {
                "url": format!("https://a.example/?t={NO_VALUE}"),
                "secret": whsec,
                "headers": {"Authorization": format!("Bearer {NO_VALUE}")},
            },
        },
        {
            "name": "mail",
            "email": {
                "host": "a.example", "port": 465, "security": "tls", "username": "u",
                "password": NO_VALUE, "from": "a@a.example", "to": ["b@a.example"],
            },
        },
        {"name": "mqtt", "mqtt": {"host": "a.example", "username": "u", "password": NO_VALUE}},
    ]);
    let settings = json!({"jwt_secret": NO_VALUE, "notifiers": notifiers});
    let figment = crate::support::figment(&folder, &settings);
    let settings = tidings::config::Settings::from_figment(&figment).unwrap();
    assert_eq!(settings.jwt_secret.as_ref().unwrap().reveal(), NO_VALUE);
    assert_eq!(settings.notifiers.len(), 3);
    let serialised = serde_json::to_string(&settings).unwrap();
    for shown in [format!("{settings:?} {settings:#?}"), serialised] {
        for secret in [NO_VALUE, whsec] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("a.example"), "and all else: {shown}");
    }
}

#[test]
fn a_ticket_and_a_token_are_shown_by_no_log() {
    let secret = tidings::config::Secret::from(NO_VALUE);
    let ticket = tidings::auth::Ticket {
        ticket: secret.clone(),
        expires_at: chrono::Utc::now(),
    };
    let shown = format!("{secret:?} {ticket:?} {:?}", Some(&secret));
    assert!(!shown.contains(NO_VALUE), "{shown}");
}
