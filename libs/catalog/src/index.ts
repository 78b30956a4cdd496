export {
  type AdapterDescription,
  adapterDescriptionFile,
  parseAdapterDescription,
  serializeAdapterDescription,
} from './adapter-description.ts';
export { artifactFiles, manifestOf } from './artifacts.ts';
export { type Catalog, openCatalog } from './catalog.ts';
export {
  type DatasetMetadata,
  parseDatasetMetadata,
  type SplitFiles,
  serializeDatasetMetadata,
} from './dataset-metadata.ts';
export { names } from './names.ts';
export { operationKinds } from './operation-kinds.ts';
