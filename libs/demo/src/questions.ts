/** Questions for base and adapter side by side. They stand in no row. */
export const demoQuestions: readonly string[] = [
  '怀疑急性阑尾炎，首选什么检查？',
  'A young man has pain moving to the right lower belly. Which condition is most likely?',
];
