//! What is shipped beside the program: the service, the manifest, the alerts, the dashboard. Each is held against the program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::metrics::promtool;
use crate::support::Bridge;
use crate::support::bridge::run;

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(shipped(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn systemd_has_nothing_to_say_of_the_service() {
    let verify = Command::new("systemd-analyze").arg("verify").arg(shipped("config/systemd/brokercast.service")).output();
    let verify = verify.unwrap_or_else(|e| panic!("systemd-analyze: {e}; Debian has it in the package `systemd`"));
    assert_eq!((text(&verify.stdout), text(&verify.stderr), verify.status.code()), (String::new(), String::new(), Some(0)));
    let service = read("config/systemd/brokercast.service");
    for line in ["Type=notify", "ExecReload=/bin/kill -HUP $MAINPID", "WatchdogSec=30s"] {
        assert!(service.lines().any(|l| l == line), "{line}");
    }
}

/// The documents of a YAML file.
fn documents(yaml: &str) -> Vec<Value> {
    yaml.split("\n---\n").skip(1).map(|document| serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{e}\n{document}"))).collect()
}

#[test]
fn the_manifest_holds_together_and_its_configuration_passes_check() {
    let all = documents(&read("config/kubernetes.yaml"));
    let of = |kind: &str| all.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("brokercast.yaml");
    std::fs::write(&file, of("ConfigMap")["data"]["brokercast.yaml"].as_str().unwrap()).unwrap();
    let checked = run(&["check", "--config", &file.display().to_string()]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let pod = &of("Deployment")["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    let ports: BTreeSet<_> = container["ports"].as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap()).collect();
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        assert!(ports.contains(container[probe]["httpGet"]["port"].as_str().unwrap()), "{probe}");
    }
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
    let labels = &pod["metadata"]["labels"];
    assert_eq!(&of("Deployment")["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&of("Service")["spec"]["selector"], labels);
    assert!(ports.contains(of("Service")["spec"]["ports"][0]["targetPort"].as_str().unwrap()));
    let backend = &of("Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"];
    assert_eq!(backend["name"], of("Service")["metadata"]["name"]);
    assert_eq!(of("Ingress")["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-buffering"], "off");
    // What is left of the time when the sleep is over has to be more than the drain.
    let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > 20 + container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap());
}

#[test]
fn every_alert_is_well_formed_and_has_its_line_in_the_runbook() {
    assert_eq!(promtool(&["check", "rules", &shipped("config/prometheus/alerts.yml").display().to_string()], ""), "");
    let rules: Value = serde_saphyr::from_str(&read("config/prometheus/alerts.yml")).unwrap();
    let runbook = read("docs/alerts.md");
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(runbook.lines().any(|line| line == format!("## {name}")), "{name} has no heading in docs/alerts.md");
        assert_eq!(rule["annotations"]["runbook"], format!("docs/alerts.md#{}", name.to_lowercase()));
    }
    assert_eq!(runbook.lines().filter(|line| line.starts_with("## ")).count(), rules.len(), "a heading without an alert");
}

/// The names of metrics in a text, and what each is asked for by.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_of_name(c));
    words.filter(|word| word.starts_with("brokercast_") || word.starts_with("process_")).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_metric_that_alerts_dashboard_and_documents_name_is_there() {
    let bridge = Bridge::open().await;
    let text = bridge.metrics().await;
    let mut there: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let histograms: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram")).collect();
    let series: Vec<_> = histograms.iter().flat_map(|name| ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}"))).collect();
    there.extend(series.iter().map(String::as_str));
    for file in ["config/prometheus/alerts.yml", "config/grafana/dashboards/brokercast.json", "docs/alerts.md"] {
        let named = names_in(&read(file));
        assert!(named.len() > 5, "{file}");
        for name in named {
            assert!(there.contains(name.as_str()), "{file} names {name}");
        }
    }
}

#[test]
fn the_dashboard_asks_what_prometheus_understands() {
    let dashboard: Value = serde_json::from_str(&read("config/grafana/dashboards/brokercast.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(expressions.len() > 30);
    let rules = expressions.iter().enumerate().map(|(n, expression)| {
        let expression = expression.replace("$__rate_interval", "5m").replace("$instance", ".*");
        format!("  - {{ record: \"a:{n}\", expr: {} }}\n", serde_json::to_string(&expression).unwrap())
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("groups:\n- name: a\n  rules:\n{}", rules.collect::<String>())).unwrap();
    assert_eq!(promtool(&["check", "rules", &file.path().display().to_string()], ""), "");
    // Nothing is left to be clicked: what is provisioned names this dashboard's folder and its data source.
    assert!(read("config/grafana/provisioning/dashboards/brokercast.yaml").contains("/etc/grafana/dashboards"));
    let compose: Value = serde_saphyr::from_str(&read("compose.yaml")).unwrap();
    for service in ["prometheus", "grafana"] {
        assert_eq!(compose["services"][service]["profiles"], serde_json::json!(["observe"]), "{service}");
    }
    assert_eq!(promtool(&["check", "config", "--syntax-only", &shipped("config/prometheus/prometheus.yml").display().to_string()], ""), "");
}

#[tokio::test]
async fn the_service_manager_is_told_of_start_reload_life_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    let builder =
        Bridge::builder(crate::support::bridge::OPEN).env("NOTIFY_SOCKET", path.display().to_string()).env("WATCHDOG_USEC", "400000");
    let mut bridge = builder.start().await;
    let mut told: Vec<String> = Vec::new();
    let hear = async |wanted: &str, told: &mut Vec<String>| {
        let what = format!("{wanted} to be told");
        let mut buffer = [0; 1024];
        let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
        loop {
            let heard =
                tokio::time::timeout_at(deadline, socket.recv(&mut buffer)).await.unwrap_or_else(|_| panic!("{what}: {told:?}")).unwrap();
            let lines = text(&buffer[..heard]);
            let is_it = lines.lines().any(|line| line == wanted);
            told.push(lines);
            if is_it {
                return;
            }
        }
    };
    hear("READY=1", &mut told).await;
    hear("WATCHDOG=1", &mut told).await;
    hear("WATCHDOG=1", &mut told).await;
    bridge.signal(rustix::process::Signal::HUP);
    hear("RELOADING=1", &mut told).await;
    assert!(told.last().unwrap().contains("MONOTONIC_USEC="), "{told:?}");
    hear("READY=1", &mut told).await;
    bridge.signal(rustix::process::Signal::TERM);
    hear("STOPPING=1", &mut told).await;
    assert!(bridge.exit(crate::support::PATIENCE).await.success());
}

/// In a PID namespace of its own, where nothing else runs.
#[tokio::test]
async fn health_asks_the_only_bridge_and_says_so_where_there_are_several() {
    let folder = tempfile::tempdir().unwrap();
    let config = |name: &str, port: u16, admin: &str, source: &str| {
        let sources = format!("sources: {{ {source} }}\n");
        let text = format!("server: {{ listen: 127.0.0.1:{port} }}\nadmin: {{ listen: '{admin}' }}\n{sources}");
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    let ports: Vec<_> = (0..3).map(|_| crate::support::port::Port::take()).collect();
    let port = |n: usize| ports[n].address().rsplit(':').next().unwrap().parse::<u16>().unwrap();
    config("a.yaml", port(0), &ports[1].address(), "mine: { ticker: { subject: a } }");
    config("b.yaml", port(2), "unix:b.sock", "other: { ticker: { subject: a } }");
    let script = r#"
        trap 'kill $(jobs -p) 2> /dev/null' EXIT
        "$PROGRAM" --config a.yaml > a.log 2>&1 &
        a=$!
        tries=0; until "$PROGRAM" health > only 2>&1; do tries=$((tries + 1)); [ $tries -lt 300 ] || exit 7; sleep 0.1; done
        # It is asked where it listens, not where its file says by now.
        echo 'admin: { listen: 127.0.0.1:1 }' > a.yaml
        "$PROGRAM" health > moved 2>&1 || exit 8
        "$PROGRAM" --config b.yaml > b.log 2>&1 &
        tries=0; until "$PROGRAM" health --config b.yaml > named 2>&1; do tries=$((tries + 1)); [ $tries -lt 300 ] || exit 9; sleep 0.1; done
        "$PROGRAM" health > several 2>&1
        echo $? > code
        kill $a && wait $a
        # From another folder: its socket has a relative path.
        cd /
        "$PROGRAM" health > "$OUT/socket" 2>&1 || exit 10
    "#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", script]).current_dir(folder.path());
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("BROKERCAST")) {
        command.env_remove(key);
    }
    command.env("PROGRAM", env!("CARGO_BIN_EXE_brokercast")).env("OUT", folder.path());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert!(output.status.success(), "{output:?} {} {}", said("only"), said("a.log"));
    assert!(said("only").contains("mine: up"), "{}", said("only"));
    assert!(said("moved").contains("mine: up"), "{}", said("moved"));
    assert!(said("named").contains("other: up"), "{}", said("named"));
    assert!(said("several").contains("--config or --url"), "{}", said("several"));
    assert_eq!(said("code").trim(), "1");
    assert!(said("socket").contains("other: up"), "{}", said("socket"));
}

/// The allocator is built for the largest pages that kernels of the architecture have.
#[test]
fn the_allocator_of_aarch64_fits_pages_of_64_kib() {
    let config = read(".cargo/config.toml");
    for libc in ["GNU", "MUSL"] {
        assert!(config.contains(&format!("\nAARCH64_UNKNOWN_LINUX_{libc}_JEMALLOC_SYS_WITH_LG_PAGE = \"16\"")), "{config}");
    }
}

/// All texts of the files of a folder and below.
fn sources(folder: &Path, found: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_threat_model_names_is_there() {
    let mut code = String::new();
    ["src", "tests"].into_iter().for_each(|folder| sources(&shipped(folder), &mut code));
    let security = read("SECURITY.md");
    let rows: Vec<_> = security.lines().filter(|line| line.starts_with("| ") && line.split('|').count() == 5).collect();
    let mut named = 0;
    for row in rows {
        let [_, threat, _, test, _] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        assert!(test.contains('`') || ["test", "---"].contains(&test.trim()), "`{threat}` has no test");
        for name in test.split('`').skip(1).step_by(2) {
            let Some((room, name)) = name.rsplit_once("::").filter(|(_, name)| !name.is_empty()) else { continue };
            let there =
                if room == "fuzz" { shipped(&format!("fuzz/corpus/{name}")).is_dir() } else { code.contains(&format!("fn {name}(")) };
            assert!(there || shipped(&format!("tests/it/{name}.rs")).exists() || name == "scrub", "`{name}` is not there");
            named += 1;
        }
    }
    assert!(named > 30, "{named}");
}
