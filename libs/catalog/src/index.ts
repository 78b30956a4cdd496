export { type AdapterDescription, adapterDescriptionFile, parseAdapterDescription, serializeAdapterDescription } from './adapter-description.ts';
export { type Catalog, openCatalog } from './catalog.ts';
export { type DatasetMetadata, parseDatasetMetadata, serializeDatasetMetadata, type SplitFiles } from './dataset-metadata.ts';
export { names } from './names.ts';
export { artifactFiles, manifestOf } from './artifacts.ts';
