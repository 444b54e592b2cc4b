// The tree of modules: what each costs with all that is inside it.

/** The tree by module path, most expensive first; a module with one layer alone is that layer. */
function moduleTree(prediction, layers, field) {
  const root = { name: prediction.model || "model", path: "", value: 0, base: 0, children: new Map(), layers: [] };
  for (const layer of layers) {
    const value = layer[field] ?? 0;
    const base = baseOf(layer, field) ?? 0;
    let node = root;
    const steps = layer.path ? layer.path.split(".") : [];
    for (const visit of [null, ...steps]) {
      if (visit !== null) {
        if (!node.children.has(visit)) {
          const path = node.path ? `${node.path}.${visit}` : visit;
          node.children.set(visit, { name: visit, path, value: 0, base: 0, children: new Map(), layers: [] });
        }
        node = node.children.get(visit);
      }
      node.value += value;
      node.base += base;
    }
    node.layers.push(layer);
  }
  return root;
}

/** A module that is one layer. */
function isLeaf(node) {
  return node.children.size === 0 && node.layers.length === 1;
}

/** The layers that a module with others inside runs itself, as nodes. */
function ownLayers(node, quantity) {
  const field = FIELDS[quantity];
  return node.layers.map((layer) => ({
    name: layer.op, path: layer.path, value: layer[field] ?? 0, base: baseOf(layer, field) ?? 0,
    children: new Map(), layers: [], layer,
  }));
}

function drawModules(prediction, tree, quantity) {
  const top = moduleNode(tree, tree.value, quantity, Boolean(prediction.comparison));
  byId("modules").replaceChildren(top);
  if (!isLeaf(tree)) top.open = true;
}

function moduleNode(node, total, quantity, compared) {
  const leaf = isLeaf(node) || Boolean(node.layer);
  const line = [
    make("code", {}, isLeaf(node) ? `${node.name} (${node.layers[0].op})` : node.name),
    compared && make("span", { class: `number ${tone(node.base, node.value)}` },
      tone(node.base, node.value) === "faint" ? "" : growth(node.base, node.value)),
    make("span", { class: "number" }, show(quantity, node.value)),
    make("span", { class: "number" }, showPercent(total ? node.value / total : 0)),
  ].filter(Boolean);
  if (leaf) return make("div", { class: "leaf" }, ...line);
  const made = make("details", {}, make("summary", {}, ...line));
  // Filled when it is opened: a model has thousands.
  made.addEventListener("toggle", () => {
    if (made.childElementCount > 1) return;
    const inside = [...node.children.values()].sort((one, other) => other.value - one.value);
    made.append(...[...inside, ...ownLayers(node, quantity)].map((each) => moduleNode(each, total, quantity, compared)));
  });
  return made;
}
