import { defineConfig } from 'vitest/config';

const everywhere = '{libs,scripts,services,tests}/**';
const ignored = ['**/node_modules/**', '**/build/**', '**/.cache/**', '**/.medmesh/**'];

/** Unit tests reach nothing but files; component tests start real servers; end-to-end tests start whole processes. */
export default defineConfig({
  test: {
    pool: 'forks',
    maxWorkers: 2,
    // A test that is slow to stop its servers must not look like a failed one.
    teardownTimeout: 20_000,
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: [`${everywhere}/*.test.ts`],
          exclude: [...ignored, '**/*.component.test.ts', 'tests/e2e/**'],
          testTimeout: 20_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'component',
          include: [`${everywhere}/*.component.test.ts`],
          exclude: [...ignored, 'tests/e2e/**'],
          // Bounds for what never comes. On a machine that is busy with other work, a service takes ten seconds to start.
          testTimeout: 180_000,
          hookTimeout: 120_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'e2e',
          include: ['tests/e2e/**/*.test.ts'],
          exclude: ignored,
          testTimeout: 600_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
