//! Launch templates and launch configurations, as a node class and what its nodes carry.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::group::{Group, Market};
use super::image;
use super::userdata;
use crate::api::labels;
use crate::cloud::aws::ami::AmiFamily;

/// What to do about fields that a node class does not have.
const ADVICE: [(&str, &str); 10] = [
    ("KeyName", "node classes have no SSH keys; use Session Manager, or add the key in user data"),
    (
        "CreditSpecification",
        "node classes have no CPU credits; set the account's default for the family",
    ),
    (
        "CpuOptions",
        "node classes set neither cores nor threads; require types with the vCPUs you want",
    ),
    ("PrivateDnsNameOptions", "the subnet's setting is used"),
    ("LicenseSpecifications", "node classes have no licences"),
    ("HibernationOptions", "nodes do not hibernate"),
    ("DisableApiTermination", "instances must be terminable"),
    ("DisableApiStop", "instances must be terminable"),
    ("MaintenanceOptions", "the account's setting is used; failed nodes are replaced"),
    ("InstanceInitiatedShutdownBehavior", "instances that stop are terminated"),
];
/// Tags that AWS, EKS or Karpenter keep for themselves.
const RESERVED_TAGS: [&str; 7] = [
    "aws:",
    "eks:",
    "kubernetes.io/cluster",
    "k8s.io/cluster-autoscaler/",
    "karpenter.sh/",
    "karpenter.k8s.aws/",
    "alpha.eksctl.io/",
];

/// Reads `LaunchTemplateData`.
pub fn read(group: &mut Group, data: Value) {
    let mut fields = Fields::of(data);
    let user_data = fields.text("UserData");
    let image = fields.text("ImageId");
    image::read(group, image.as_deref(), user_data.as_deref());
    profile(group, &mut fields);
    security_groups(group, &mut fields);
    interfaces(group, &mut fields);
    disks(group, &mut fields);
    metadata(group, &mut fields);
    placement(group, &mut fields);
    purchase(group, &mut fields);
    defaults(group);
    if fields.object("Monitoring").take("Enabled") == true {
        group.set("detailedMonitoring", true);
    }
    if fields.object("EnclaveOptions").take("Enabled") == true {
        group.set("enclaveOptions", json!({"enabled": true}));
    }
    for mut tags in fields.list("TagSpecifications").into_iter().map(Fields::of) {
        if tags.text("ResourceType").as_deref() == Some("instance") {
            for mut tag in tags.list("Tags").into_iter().map(Fields::of) {
                let (key, value) = (tag.text("Key"), tag.text("Value"));
                self::tag(group, &key.unwrap_or_default(), &value.unwrap_or_default());
            }
        }
    }
    if let Some(name) = fields.text("InstanceType") {
        // Types of the group itself come first.
        if group.types.is_empty() {
            group.types = vec![name];
        }
    }
    let attributes = fields.take("InstanceRequirements");
    if attributes.is_object() && group.types.is_empty() {
        super::attributes::read(group, attributes);
    }
    // EBS optimization is the default of every type that still is for sale.
    fields.ignore(&["EbsOptimized"]);
    for note in fields.rest("", &ADVICE) {
        group.note(note);
    }
}

/// A launch configuration in the shape of `LaunchTemplateData`.
pub fn of_configuration(configuration: Value) -> Value {
    let mut fields = Fields::of(configuration);
    let mut data = Map::new();
    for name in
        ["ImageId", "KeyName", "UserData", "InstanceType", "BlockDeviceMappings", "MetadataOptions"]
    {
        data.insert(name.to_owned(), fields.take(name));
    }
    let groups = fields.texts("SecurityGroups");
    // Launch configurations list ids and names of security groups in one field.
    let (ids, names): (Vec<_>, Vec<_>) = groups.into_iter().partition(|g| g.starts_with("sg-"));
    data.insert("SecurityGroupIds".to_owned(), json!(ids));
    data.insert("SecurityGroups".to_owned(), json!(names));
    data.insert("Monitoring".to_owned(), fields.take("InstanceMonitoring"));
    if let Some(profile) = fields.text("IamInstanceProfile") {
        let field = if profile.starts_with("arn:") { "Arn" } else { "Name" };
        data.insert("IamInstanceProfile".to_owned(), json!({field: profile}));
    }
    if let Some(tenancy) = fields.text("PlacementTenancy") {
        data.insert("Placement".to_owned(), json!({"Tenancy": tenancy}));
    }
    if let Some(price) = fields.text("SpotPrice") {
        let options = json!({"MarketType": "spot", "SpotOptions": {"MaxPrice": price}});
        data.insert("InstanceMarketOptions".to_owned(), options);
    }
    if let Value::Bool(public) = fields.take("AssociatePublicIpAddress") {
        data.insert(
            "NetworkInterfaces".to_owned(),
            json!([{"DeviceIndex": 0, "AssociatePublicIpAddress": public}]),
        );
    }
    Value::Object(data)
}

/// Adds a tag to the node class, unless somebody keeps it for themselves.
pub fn tag(group: &mut Group, key: &str, value: &str) {
    if group.read_tag(key, value) || RESERVED_TAGS.iter().any(|p| key.starts_with(p)) {
        return;
    }
    let tags = group.class.entry("tags").or_insert_with(|| json!({}));
    tags[key] = json!(value);
}

fn profile(group: &mut Group, fields: &mut Fields) {
    let mut profile = fields.object("IamInstanceProfile");
    let of_arn = |arn: String| arn.rsplit('/').next().unwrap_or_default().to_owned();
    if let Some(name) = profile.text("Name").or_else(|| profile.text("Arn").map(of_arn)) {
        group.set("instanceProfile", name);
    }
}

fn security_groups(group: &mut Group, fields: &mut Fields) {
    let ids = fields.texts("SecurityGroupIds");
    let names = fields.texts("SecurityGroups");
    let terms: Vec<Value> = ids
        .iter()
        .map(|id| json!({"id": id}))
        .chain(names.iter().map(|name| json!({"name": name})))
        .collect();
    if !terms.is_empty() {
        group.set("securityGroupSelectorTerms", terms);
    }
}

fn interfaces(group: &mut Group, fields: &mut Fields) {
    let all: Vec<Fields> = fields.list("NetworkInterfaces").into_iter().map(Fields::of).collect();
    let mut carried = Vec::new();
    let several = all.len() > 1;
    for mut interface in all {
        let ids = interface.texts("Groups");
        if !ids.is_empty() && !group.class.contains_key("securityGroupSelectorTerms") {
            let terms: Vec<Value> = ids.iter().map(|id| json!({"id": id})).collect();
            group.set("securityGroupSelectorTerms", terms);
        }
        let kind = interface.text("InterfaceType").unwrap_or_else(|| "interface".to_owned());
        let device = interface.number("DeviceIndex").unwrap_or(0);
        let card = interface.number("NetworkCardIndex").unwrap_or(0);
        if let Value::Bool(public) = interface.take("AssociatePublicIpAddress")
            && device == 0
        {
            group.set("associatePublicIPAddress", public);
        }
        if let Some(count) = interface.number("Ipv4PrefixCount").filter(|_| device == 0) {
            group.set("ipPrefixCount", count);
        }
        connections(group, interface.object("ConnectionTrackingSpecification"));
        if kind == "efa" {
            group.note("NetworkInterfaces: EFA interfaces are attached for pods that request vpc.amazonaws.com/efa");
        } else if several {
            carried.push(
                json!({"deviceIndex": device, "interfaceType": kind, "networkCardIndex": card}),
            );
        }
        // The subnet comes from the group, and interfaces go with their instance.
        interface.ignore(&["SubnetId", "DeleteOnTermination"]);
        for note in interface.rest("NetworkInterfaces.", &[]) {
            group.note(note);
        }
    }
    if !carried.is_empty() {
        group.set("networkInterfaces", carried);
    }
}

fn connections(group: &mut Group, mut fields: Fields) {
    let mut timeouts = Map::new();
    for (from, to) in [
        ("TcpEstablishedTimeout", "tcpEstablishedTimeout"),
        ("UdpStreamTimeout", "udpStreamTimeout"),
        ("UdpTimeout", "udpTimeout"),
    ] {
        if let Some(seconds) = fields.number(from) {
            timeouts.insert(to.to_owned(), json!(seconds));
        }
    }
    if !timeouts.is_empty() {
        group.set("connectionTracking", timeouts);
    }
}

fn disks(group: &mut Group, fields: &mut Fields) {
    let mut mappings = Vec::new();
    for mut device in fields.list("BlockDeviceMappings").into_iter().map(Fields::of) {
        let name = device.text("DeviceName").unwrap_or_default();
        let mut ebs = device.object("Ebs");
        let mut volume = Map::new();
        if let Some(size) = ebs.number("VolumeSize") {
            volume.insert("volumeSize".to_owned(), json!(format!("{size}Gi")));
        }
        for (from, to) in [
            ("VolumeType", "volumeType"),
            ("Iops", "iops"),
            ("Throughput", "throughput"),
            ("Encrypted", "encrypted"),
            ("KmsKeyId", "kmsKeyID"),
            ("SnapshotId", "snapshotID"),
            ("DeleteOnTermination", "deleteOnTermination"),
            ("VolumeInitializationRate", "volumeInitializationRate"),
        ] {
            let value = ebs.take(from);
            if !value.is_null() {
                volume.insert(to.to_owned(), value);
            }
        }
        if volume.contains_key("volumeSize") || volume.contains_key("snapshotID") {
            mappings.push(json!({"deviceName": name, "ebs": volume}));
        } else {
            group.note(format!("BlockDeviceMappings {name}: expected a size or a snapshot; the image's own mapping is used"));
        }
        for note in device.rest(&format!("BlockDeviceMappings {name}: "), &[]) {
            group.note(note);
        }
    }
    if !mappings.is_empty() {
        group.set("blockDeviceMappings", mappings);
    }
}

fn metadata(group: &mut Group, fields: &mut Fields) {
    let mut options = fields.object("MetadataOptions");
    options.ignore(&["State"]);
    let mut carried = Map::new();
    for (from, to) in [
        ("HttpEndpoint", "httpEndpoint"),
        ("HttpProtocolIpv6", "httpProtocolIPv6"),
        ("HttpPutResponseHopLimit", "httpPutResponseHopLimit"),
        ("HttpTokens", "httpTokens"),
    ] {
        let value = options.take(from);
        if !value.is_null() {
            carried.insert(to.to_owned(), value);
        }
    }
    if options.text("InstanceMetadataTags").as_deref() == Some("enabled") {
        group.note("MetadataOptions.InstanceMetadataTags: node classes do not show tags in instance metadata");
    }
    if !carried.is_empty() {
        group.set("metadataOptions", carried);
    }
}

/// Notes what a node class sets where the template leaves it to the image or to the account.
fn defaults(group: &mut Group) {
    let family = group.class.get("amiFamily").and_then(Value::as_str).and_then(AmiFamily::parse);
    let volumes = family.map(AmiFamily::default_block_devices).unwrap_or_default();
    if !group.class.contains_key("blockDeviceMappings") && !volumes.is_empty() {
        let sizes = volumes.iter().filter_map(|v| {
            let size = v.ebs.as_ref()?.volume_size.as_deref()?;
            Some(format!("{} {size}", v.device_name.as_deref()?))
        });
        let sizes = sizes.collect::<Vec<_>>().join(", ");
        group.note(format!("BlockDeviceMappings: not set; instead of the image's own, nodes get encrypted gp3 volumes: {sizes}"));
    }
    if !group.class.contains_key("metadataOptions") {
        group.note("MetadataOptions: not set; nodes require tokens (IMDSv2) with a hop limit of 1");
    }
}

fn placement(group: &mut Group, fields: &mut Fields) {
    let mut placement = fields.object("Placement");
    if let Some(id) = placement.text("GroupId") {
        group.set("placementGroupSelector", json!({"id": id}));
    } else if let Some(name) = placement.text("GroupName") {
        group.set("placementGroupSelector", json!({"name": name}));
    }
    match placement.text("Tenancy").as_deref() {
        Some("dedicated") => {
            group.require(labels::INSTANCE_TENANCY, "In", &["dedicated".to_owned()]);
        }
        Some("host") => group.note("Placement.Tenancy host: dedicated hosts are not supported"),
        _ => {}
    }
    placement.ignore(&["AvailabilityZone"]);
    for note in placement.rest("Placement.", &[]) {
        group.note(note);
    }
}

fn purchase(group: &mut Group, fields: &mut Fields) {
    let mut market = fields.object("InstanceMarketOptions");
    match market.text("MarketType").as_deref() {
        Some("spot") => group.market = Market::Spot,
        Some("capacity-block") => group.market = Market::Reserved,
        _ => {}
    }
    if let Some(price) = market.object("SpotOptions").text("MaxPrice") {
        group.note(format!(
            "SpotOptions.MaxPrice ({price}): a NodePool has no highest price; spot costs at most the on-demand price"
        ));
    }
    let mut reservation = fields.object("CapacityReservationSpecification");
    let mut target = reservation.object("CapacityReservationTarget");
    if let Some(id) = target.text("CapacityReservationId") {
        group.set("capacityReservationSelectorTerms", json!([{"id": id}]));
        group.market = Market::Reserved;
    }
    if target.text("CapacityReservationResourceGroupArn").is_some() {
        group.note("CapacityReservationSpecification: a resource group of reservations; select them by tags in capacityReservationSelectorTerms");
    }
    if reservation.text("CapacityReservationPreference").as_deref() == Some("none") {
        group.note("CapacityReservationSpecification: open reservations may still be used");
    }
}

/// Decodes user data.
pub fn decoded(group: &mut Group, base64_text: &str) -> Option<String> {
    match userdata::decode(base64_text) {
        Ok(text) => Some(text).filter(|t| !t.trim().is_empty()),
        Err(problem) => {
            group.note(format!("UserData: {problem}"));
            None
        }
    }
}
