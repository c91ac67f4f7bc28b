// What Netron shows of models, as JSON: node viewer.mjs NETRON MODEL...
//
// NETRON is the folder of Netron's sources with a package.json that says "type": "module". Its reader gets
// what the application's window gives it otherwise: files, and nothing else.

import fs from 'fs';
import path from 'path';
import { pathToFileURL } from 'url';

const [folder, ...models] = process.argv.slice(2);
const load = (id) => import(pathToFileURL(path.join(folder, `${id}.js`)).href);
const { BinaryStream } = await load('base');
const view = await load('view');

const host = {
    environment: () => null,
    event: () => {},
    exception: () => {},
    require: (id) => load(id.replace('./', '')),
    asset: async (file) => fs.readFileSync(path.join(folder, file), 'utf-8'),
};

class File {
    constructor(file) {
        this.folder = path.dirname(file);
        this.identifier = path.basename(file);
        this.stream = new BinaryStream(new Uint8Array(fs.readFileSync(file)));
    }

    asset(file) {
        return host.asset(file);
    }

    async fetch(file) {
        return new BinaryStream(new Uint8Array(fs.readFileSync(path.join(this.folder, file))));
    }

    async request(file, encoding, base) {
        return base === null ? host.asset(file) : this.fetch(file);
    }

    require(id) {
        return host.require(id);
    }

    error(error) {
        throw error;
    }
}

const types = (nodes) => nodes.map((node) => `${node.type.module}.${node.type.name}`);
const weights = (nodes) => nodes.flatMap((node) => node.inputs).flatMap((input) => input.value)
    .filter((value) => value?.initializer).map((value) => value.initializer);

const out = [];
for (const file of models) {
    const model = await new view.ModelFactoryService(host).open(new File(file));
    const [graph] = model.modules;
    const read = [];
    for (const tensor of weights(graph.nodes)) {
        if (!tensor.peek()) {
            await tensor.read();
        }
        // A tensor without elements has no data.
        const elements = tensor.type.shape.dimensions.reduce((n, d) => n * Number(d), 1);
        read.push(elements === 0 || tensor.values?.length > 0);
    }
    out.push({
        file,
        format: model.format,
        producer: model.producer,
        imports: model.imports,
        metadata: Object.fromEntries(model.metadata.map((entry) => [entry.name, entry.value])),
        inputs: graph.inputs.map((input) => input.name),
        outputs: graph.outputs.map((output) => output.name),
        nodes: types(graph.nodes),
        // Nodes of a function's type carry its body, which a click on them opens.
        opens: graph.nodes.filter((node) => node.type.nodes?.length > 0).map((node) => `${node.type.module}.${node.type.name}`),
        functions: model.functions.map((f) => ({ name: `${f.module}.${f.name}`, nodes: types(f.nodes) })),
        weights: read.length,
        empty: read.filter((there) => !there).length,
    });
}
process.stdout.write(JSON.stringify(out));
