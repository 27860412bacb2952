//! The chart gives what the kustomize base gives, and what its values say. Rendered by gtmpl, which knows Go's templates;
//! the functions that Helm adds to them and the chart uses are here.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use gtmpl::{Context, FuncError, Template, Value as Any};
use serde_json::{Value, json};

fn deploy(path: &str) -> Result<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn yaml(text: &str) -> Result<Value> {
    Ok(serde_saphyr::from_str(text)?)
}

/// JSON is YAML in another dress (YAML 1.2 section 1.2).
fn to_yaml(arguments: &[Any]) -> Result<Any, FuncError> {
    let value = arguments.first().map(from_any);
    let value = value.ok_or_else(|| FuncError::Generic("toYaml takes a value".to_owned()))?;
    Ok(Any::from(value.to_string()))
}

fn nindent(arguments: &[Any]) -> Result<Any, FuncError> {
    let [Any::Number(by), Any::String(text)] = arguments else {
        return Err(FuncError::Generic("nindent takes a number and a text".to_owned()));
    };
    let by = by.as_u64().unwrap_or_default() as usize;
    let lines = text.lines().map(|line| format!("\n{:by$}{line}", ""));
    Ok(Any::from(lines.collect::<String>()))
}

fn quote(arguments: &[Any]) -> Result<Any, FuncError> {
    let Some(Any::String(text)) = arguments.first() else {
        return Err(FuncError::Generic("quote takes a text".to_owned()));
    };
    Ok(Any::from(json!(text).to_string()))
}

fn from_any(value: &Any) -> Value {
    match value {
        Any::Bool(value) => json!(value),
        Any::String(value) => json!(value),
        Any::Number(value) => value.as_i64().map_or(Value::Null, |value| json!(value)),
        Any::Array(values) => values.iter().map(from_any).collect(),
        Any::Object(values) | Any::Map(values) => values
            .iter()
            .map(|(key, value)| (key.clone(), from_any(value)))
            .collect(),
        Any::Nil | Any::NoValue | Any::Function(_) => Value::Null,
    }
}

fn to_any(value: &Value) -> Any {
    match value {
        Value::Null => Any::Nil,
        Value::Bool(value) => Any::from(*value),
        Value::Number(value) => Any::from(value.as_i64().unwrap_or_default()),
        Value::String(value) => Any::from(value.as_str()),
        Value::Array(values) => Any::Array(values.iter().map(to_any).collect()),
        Value::Object(values) => Any::Map(
            values
                .iter()
                .map(|(key, value)| (key.clone(), to_any(value)))
                .collect(),
        ),
    }
}

/// The chart's templates by what they make.
const TEMPLATES: [(&str, &str); 6] = [
    ("ClusterRole", "clusterrole"),
    ("ClusterRoleBinding", "clusterrolebinding"),
    ("ConfigMap", "configmap"),
    ("conflist", "conflist"),
    ("DaemonSet", "daemonset"),
    ("ServiceAccount", "serviceaccount"),
];

/// The chart's documents, with these values in place of its own where they are there.
fn render(over: &Value) -> Result<BTreeMap<String, Value>> {
    let chart = yaml(&deploy("helm/causeway/Chart.yaml")?)?;
    let mut values = yaml(&deploy("helm/causeway/values.yaml")?)?;
    merge(&mut values, over);
    let context = json!({
        "Values": values,
        "Release": { "Name": "node-network", "Namespace": "kube-system" },
        "Chart": { "AppVersion": chart["appVersion"] },
    });
    let mut documents = BTreeMap::new();
    for (made, name) in TEMPLATES {
        let mut template = Template::default();
        template.add_func("toYaml", to_yaml);
        template.add_func("nindent", nindent);
        template.add_func("quote", quote);
        let text = deploy(&format!("helm/causeway/templates/{name}.yaml"))?;
        template.parse(text).map_err(|error| anyhow!("{name}: {error}"))?;
        let rendered = template
            .render(&Context::from(to_any(&context)))
            .map_err(|error| anyhow!("{name}: {error}"))?;
        if !rendered.trim().is_empty() {
            let document = yaml(&rendered).with_context(|| rendered.clone())?;
            documents.insert(made.to_owned(), document);
        }
    }
    Ok(documents)
}

fn merge(into: &mut Value, over: &Value) {
    match (into, over) {
        (Value::Object(into), Value::Object(over)) => {
            for (key, value) in over {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, over) => *into = over.clone(),
    }
}

/// What a release adds to each document, and kustomize elsewhere.
fn without_release(mut document: Value) -> Value {
    for metadata in ["/metadata", "/spec/template/metadata"] {
        if let Some(Value::Object(metadata)) = document.pointer_mut(metadata) {
            metadata.remove("namespace");
            if let Some(Value::Object(labels)) = metadata.get_mut("labels") {
                labels.remove("app.kubernetes.io/instance");
            }
        }
    }
    document
}

/// What a release and kustomize say of the image of each container.
fn with_image(set: &mut Value) {
    for containers in ["initContainers", "containers"] {
        let containers = set.pointer_mut(&format!("/spec/template/spec/{containers}"));
        for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
            container["image"] = json!("causeway:0.1.0");
            container["imagePullPolicy"] = json!("IfNotPresent");
        }
    }
}

/// The operation `add` of RFC 6902, all that the overlays need.
fn patch(document: &mut Value, patch: &Value) -> Result<()> {
    for operation in patch.as_array().context("a patch is a list")? {
        let path = operation["path"].as_str().context("no path")?;
        ensure!(operation["op"] == "add", "{operation}");
        let (parent, last) = path.rsplit_once('/').context("an empty path")?;
        let parent = document.pointer_mut(parent).with_context(|| path.to_owned())?;
        let value = operation["value"].clone();
        match parent {
            Value::Array(list) if last == "-" => list.push(value),
            Value::Array(list) => list.insert(last.parse()?, value),
            parent => parent[last] = value,
        }
    }
    Ok(())
}

#[test]
fn with_pod_cidrs_the_chart_is_the_overlay_and_the_conflist_the_stock_one() -> Result<()> {
    let mut documents = render(&json!({ "podCIDRs": true }))?;
    ensure!(documents.len() == TEMPLATES.len());
    let overlay = |file: &str| deploy(&format!("kubernetes/overlays/pod-cidrs/{file}"));
    let mut set = yaml(&deploy("kubernetes/base/daemonset.yaml")?)?;
    let kustomization = yaml(&overlay("kustomization.yaml")?)?;
    let text = kustomization["patches"][0]["patch"]
        .as_str()
        .context("no patch")?;
    patch(&mut set, &yaml(text)?)?;
    with_image(&mut set);
    documents.insert("patched".to_owned(), set);

    let roles = overlay("clusterrole.yaml")?;
    let (role, binding) = roles.split_once("\n---\n").context("one document")?;
    documents.insert("role".to_owned(), yaml(role)?);
    documents.insert("binding".to_owned(), yaml(binding)?);
    documents.insert("list".to_owned(), yaml(&overlay("conflist.yaml")?)?);
    let document = |name: &str| {
        let mut document = without_release(documents[name].clone());
        if let Some(Value::Object(metadata)) = document.get_mut("metadata") {
            metadata.remove("labels");
        }
        document
    };
    for (rendered, plain) in [
        ("DaemonSet", "patched"),
        ("ClusterRole", "role"),
        ("ClusterRoleBinding", "binding"),
        ("conflist", "list"),
    ] {
        let (rendered, plain) = (document(rendered), document(plain));
        ensure!(rendered == plain, "{rendered:#}\n{plain:#}");
    }
    let list = document("list")["data"]["10-azure.conflist"].clone();
    let stock = deploy("10-azure.conflist")?.replace("\"mas\"", "\"podCIDRs\"");
    ensure!(list == json!(stock), "{list}");
    Ok(())
}

/// The agent asks the API server for nothing, and cannot: only the container that asks has a token, and may read nodes.
#[test]
fn only_the_container_that_asks_for_pod_cidrs_has_a_token() -> Result<()> {
    let documents = render(&json!({ "podCIDRs": true }))?;
    let pod = &documents["DaemonSet"]["spec"]["template"]["spec"];
    ensure!(pod["automountServiceAccountToken"] == false);
    let containers =
        ["initContainers", "containers"].map(|key| pod[key].as_array().cloned().unwrap_or_default());
    let with_token = |container: &Value| container["volumeMounts"].to_string().contains("\"account\"");
    let names: Vec<_> = containers
        .iter()
        .flatten()
        .filter(|container| with_token(container))
        .collect();
    ensure!(names.len() == 1 && names[0]["name"] == "pod-cidrs", "{names:#?}");
    let rules = json!([{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get"] }]);
    ensure!(documents["ClusterRole"]["rules"] == rules);
    Ok(())
}

#[test]
fn with_its_own_values_the_chart_is_the_kustomize_base() -> Result<()> {
    let documents = render(&json!({}))?;
    ensure!(documents.len() == 3, "{documents:#?}");
    for (file, kind) in [
        ("daemonset.yaml", "DaemonSet"),
        ("serviceaccount.yaml", "ServiceAccount"),
        ("configmap.yaml", "ConfigMap"),
    ] {
        let mut base = yaml(&deploy(&format!("kubernetes/base/{file}"))?)?;
        let mut document = without_release(documents[kind].clone());
        with_image(&mut base);
        if kind == "ServiceAccount" || kind == "ConfigMap" {
            base["metadata"]["labels"] = json!({ "app.kubernetes.io/name": "causeway" });
        }
        if kind == "ConfigMap" {
            // The same document in two spellings.
            for map in [&mut base, &mut document] {
                let text = map["data"]["config.yaml"].as_str().unwrap_or_default();
                map["data"]["config.yaml"] = yaml(text)?;
            }
        }
        ensure!(document == base, "{file}:\n{document:#}\n{base:#}");
    }
    Ok(())
}

#[test]
fn each_value_of_the_chart_arrives_where_it_belongs() -> Result<()> {
    let documents = render(&json!({
        "image": { "repository": "registry.example/causeway", "tag": "0.2.0", "pullSecrets": [{ "name": "pull" }] },
        "config": { "excludedRanges": ["10.0.0.0/8", "172.16.0.0/12"], "podQuota": 1000 },
        "ipMasqConfigMaps": ["masq"],
        "cni": { "binDir": "/usr/lib/cni" },
        "logFormat": "text",
        "port": 9100,
        "maxUnavailable": 1,
        "resources": { "limits": { "memory": "32Mi" } },
        "podAnnotations": { "prometheus.io/scrape": "true" },
        "affinity": { "nodeAffinity": { "a": 1 } },
    }))?;
    let set = &documents["DaemonSet"];
    let agent = "/spec/template/spec/containers/0";
    for (pointer, expected) in [
        (format!("{agent}/image"), json!("registry.example/causeway:0.2.0")),
        (format!("{agent}/args/2"), json!("text")),
        (format!("{agent}/livenessProbe/httpGet/port"), json!(9100)),
        (format!("{agent}/readinessProbe/httpGet/port"), json!(9100)),
        (format!("{agent}/resources/limits/memory"), json!("32Mi")),
        (
            "/spec/template/spec/imagePullSecrets".to_owned(),
            json!([{ "name": "pull" }]),
        ),
        ("/spec/template/spec/affinity/nodeAffinity/a".to_owned(), json!(1)),
        (
            "/spec/updateStrategy/rollingUpdate/maxUnavailable".to_owned(),
            json!(1),
        ),
        (
            "/spec/template/metadata/annotations/prometheus.io~1scrape".to_owned(),
            json!("true"),
        ),
    ] {
        ensure!(set.pointer(&pointer) == Some(&expected), "{pointer}: {set:#}");
    }
    let text = set.to_string();
    ensure!(
        text.contains("\"path\":\"/usr/lib/cni\"") && text.contains("\"name\":\"masq\""),
        "{text}"
    );
    ensure!(!text.contains("azure-ip-masq-agent-config"), "{text}");
    // What the agent reads is what was written.
    let config = documents["ConfigMap"]["data"]["config.yaml"]
        .as_str()
        .context("no text")?;
    ensure!(yaml(config)?["excludedRanges"][1] == "172.16.0.0/12", "{config}");
    Ok(())
}

/// The schema knows every value, and no other.
#[test]
fn the_schema_of_the_values_names_each_of_them() -> Result<()> {
    let schema: Value = serde_json::from_str(&deploy("helm/causeway/values.schema.json")?)?;
    let values = yaml(&deploy("helm/causeway/values.yaml")?)?;
    let named = |schema: &Value, values: &Value| -> Result<()> {
        let known = schema["properties"].as_object().context("no properties")?;
        ensure!(schema["additionalProperties"] == false);
        for key in values.as_object().context("no values")?.keys() {
            ensure!(known.contains_key(key), "{key} is not in the schema");
        }
        Ok(())
    };
    named(&schema, &values)?;
    for part in ["image", "cni"] {
        named(&schema["properties"][part], &values[part])?;
    }
    Ok(())
}
