//! `causeway-pod-cidrs`: asks the API server of a Kubernetes cluster what subnets a node has for its pods, until it has some or
//! the time is over. `causeway pod-cidrs` starts it, and writes down what it tells.
//!
//! A program of its own, by the `kube` crate: the agent stays in memory, and some of what this needs would stay with it.

use std::{
    env, error,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use causeway::{go_json::rfc3339, ipam::source::pod_cidrs::PodCidrs, root::Root};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    api::{ApiResource, NotUsed, Object},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Deserialize;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two questions: a moment first, and never so often that a thousand nodes that wait are a burden.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// Where the kubelet puts what a pod proves itself with.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What of a Node object is looked at.
type Slice = Object<Spec, NotUsed>;

#[derive(Clone, Debug, Deserialize)]
struct Spec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

/// Prints the answer, or the problem, as a JSON object `{"Ok": …}` or `{"Err": "…"}`. What it waits for is on standard error.
fn main() -> ExitCode {
    let Some(question) = Question::from_arguments() else {
        writeln!(
            io::stderr(),
            "Causeway's `causeway pod-cidrs` starts this program"
        )
        .ok();
        return ExitCode::from(2);
    };
    let told = ask(&question);
    let printed = serde_json::to_writer(io::stdout(), &told);
    if printed.is_ok() && told.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What to ask.
struct Question {
    node: String,
    /// How long to ask again and again.
    wait: Duration,
    kubeconfig: Option<PathBuf>,
}

impl Question {
    /// `NODE SECONDS [KUBECONFIG]`
    fn from_arguments() -> Option<Self> {
        let mut arguments = env::args_os().skip(1);
        Some(Self {
            node: arguments.next()?.into_string().ok()?,
            wait: Duration::from_secs(arguments.next()?.to_str()?.parse().ok()?),
            kubeconfig: arguments.next().map(PathBuf::from),
        })
    }
}

fn ask(question: &Question) -> Result<PodCidrs, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut config = config(&Root::from_env(), question.kubeconfig.as_deref()).await?;
        config.connect_timeout = Some(PATIENCE);
        // Asking again is done here, and told.
        config.default_retry = false;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| in_words(&error))?;
        let api = Api::all_with(client, &ApiResource::erase::<Node>(&()));
        keep_asking(&api, &server, question).await
    })
}

async fn config(root: &Root, kubeconfig: Option<&Path>) -> Result<Config, String> {
    let named = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path).map(Some),
        None => Kubeconfig::from_env(),
    };
    match named.map_err(|error| in_words(&error))? {
        Some(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| format!("the kubeconfig cannot be used: {}", in_words(&error))),
        None => in_cluster(root),
    }
}

/// As `Config::incluster`, below the root.
fn in_cluster(root: &Root) -> Result<Config, String> {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let host = variable("KUBERNETES_SERVICE_HOST").ok_or(
        "no API server is known: name a kubeconfig with --kubeconfig or KUBECONFIG, such as the kubelet's \
         (/var/lib/kubelet/kubeconfig); in a pod KUBERNETES_SERVICE_HOST is set",
    )?;
    let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
    let url = url(&host, &port);
    let mut config = Config::new(url.parse().map_err(|error| format!("{url}: {error}"))?);
    let file = |name: &str| root.path(ACCOUNT).join(name);
    config.root_cert_file = Some(file("ca.crt"));
    config.auth_info.token_file = Some(file("token").display().to_string());
    Ok(config)
}

fn url(host: &str, port: &str) -> String {
    if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    }
}

async fn keep_asking(api: &Api<Slice>, server: &str, question: &Question) -> Result<PodCidrs, String> {
    let until = Instant::now() + question.wait;
    let seconds = question.wait.as_secs();
    let [mut pause, longest] = PAUSES;
    let mut said = String::new();
    loop {
        let refusal = match ask_once(api, server, &question.node).await {
            Ok(told) => return Ok(told),
            Err(refusal) => refusal,
        };
        let left = until.saturating_duration_since(Instant::now());
        if refusal.is_final || left.is_zero() {
            return Err(refusal.problem);
        }
        if refusal.problem != said {
            // Nobody has to listen.
            writeln!(
                io::stderr(),
                "causeway: waiting up to {seconds} s: {}",
                refusal.problem
            )
            .ok();
            said = refusal.problem;
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = longest.min(pause * 2);
    }
}

/// Why there is no answer of use.
struct Refusal {
    problem: String,
    /// Whether the next answer would be the same.
    is_final: bool,
}

async fn ask_once(api: &Api<Slice>, server: &str, node: &str) -> Result<PodCidrs, Refusal> {
    let later = |problem| Refusal {
        problem,
        is_final: false,
    };
    let answer = tokio::time::timeout(PATIENCE, api.get(node)).await;
    let Ok(answer) = answer else {
        return Err(later(format!(
            "no answer from {server} within {} s",
            PATIENCE.as_secs()
        )));
    };
    let node = answer.map_err(|error| refusal(server, &error))?;
    let cidrs = node.spec.pod_cidrs.unwrap_or_default();
    if cidrs.is_empty() {
        return Err(later(
            "its Node object has no spec.podCIDRs. The controller manager gives them (--allocate-node-cidrs); in a cluster \
             whose pods have addresses of the VNet nobody does, and ipam.environment is another one there"
                .to_owned(),
        ));
    }
    Ok(PodCidrs {
        node: node.metadata.name.unwrap_or_default(),
        uid: node.metadata.uid.unwrap_or_default(),
        cidrs,
        read_at: rfc3339(SystemTime::now()),
    })
}

fn refusal(server: &str, error: &kube::Error) -> Refusal {
    match error {
        kube::Error::Api(status) => Refusal {
            problem: format!(
                "{server} says {}: {}{}",
                status.code,
                status.message,
                hint(status.code)
            ),
            is_final: is_final(status.code),
        },
        kube::Error::Service(error) => cannot_ask(server, error.as_ref()),
        kube::Error::HyperError(error) => cannot_ask(server, error),
        kube::Error::ReadEvents(error) => cannot_ask(server, error),
        error => Refusal {
            problem: format!("{server} gives no Node object: {}", in_words(error)),
            is_final: true,
        },
    }
}

fn cannot_ask(server: &str, error: &dyn error::Error) -> Refusal {
    Refusal {
        problem: format!("cannot ask {server}: {}", in_words(error)),
        is_final: false,
    }
}

fn hint(code: u16) -> &'static str {
    match code {
        401 => "; the token or the certificate is not one of this cluster, or is too old",
        403 => "; a role with `get` on `nodes` is needed, as deploy/kubernetes/overlays/pod-cidrs has it",
        404 => "; nodes are listed by `kubectl get nodes`, and --node or NODE_NAME names this one",
        _ => "",
    }
}

/// Whether the answer to the same question would be the same. A node that is not found may be about to register.
fn is_final(code: u16) -> bool {
    matches!(code, 300..=499) && !matches!(code, 404 | 408 | 425 | 429)
}

/// The error and what is behind it, each once.
fn in_words(error: &dyn error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !words.contains(&text) {
            words = format!("{words}: {text}");
        }
        source = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv6_stands_in_brackets() {
        assert_eq!(url("10.0.0.1", "443"), "https://10.0.0.1:443");
        assert_eq!(url("fd00::1", "6443"), "https://[fd00::1]:6443");
    }

    #[test]
    fn what_time_may_mend_is_asked_again() {
        for code in [404, 408, 429, 500, 503, 504] {
            assert!(!is_final(code), "{code}");
        }
        for code in [301, 400, 401, 403, 406] {
            assert!(is_final(code), "{code}");
        }
    }

    #[test]
    fn causes_are_told_once() {
        let cause = io::Error::other("refused");
        assert_eq!(
            in_words(&kube::Error::Service(Box::new(cause))),
            "ServiceError: refused"
        );
    }
}
