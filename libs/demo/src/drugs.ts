// Demonstration facts, general textbook level, written for this project. Not medical advice.

/** What the demo knows about one drug, in one language: its group, what it is used for, and the harm to watch for. */
export type DrugPhrases = readonly [name: string, group: string, use: string, risk: string];

/** One drug in both languages. `id` is kebab-case and unique among conditions and drugs. */
export type Drug = { readonly id: string; readonly en: DrugPhrases; readonly zh: DrugPhrases };

const drug = (id: string, en: DrugPhrases, zh: DrugPhrases): Drug => ({ id, en, zh });

/** Every drug of the demo. The order is part of the corpus and of the rows: append, do not reorder. */
export const drugs: readonly Drug[] = [
  drug(
    'aspirin',
    ['aspirin', 'antiplatelet drugs', 'prevention of heart attacks', 'stomach bleeding'],
    ['阿司匹林', '抗血小板药', '预防心肌梗死', '胃出血'],
  ),
  drug(
    'warfarin',
    ['warfarin', 'vitamin K antagonists', 'prevention of embolic stroke', 'bleeding'],
    ['华法林', '维生素K拮抗剂', '预防栓塞性卒中', '出血'],
  ),
  drug(
    'heparin',
    ['heparin', 'injected anticoagulants', 'venous thrombosis', 'low platelets'],
    ['肝素', '注射用抗凝药', '静脉血栓', '血小板减少'],
  ),
  drug(
    'metformin',
    ['metformin', 'biguanides', 'type 2 diabetes', 'lactic acidosis'],
    ['二甲双胍', '双胍类', '2型糖尿病', '乳酸酸中毒'],
  ),
  drug(
    'amlodipine',
    ['amlodipine', 'calcium channel blockers', 'high blood pressure', 'ankle swelling'],
    ['氨氯地平', '钙通道阻滞剂', '高血压', '踝部水肿'],
  ),
  drug(
    'enalapril',
    ['enalapril', 'ACE inhibitors', 'hypertension with heart failure', 'dry cough'],
    ['依那普利', '血管紧张素转换酶抑制剂', '高血压伴心力衰竭', '干咳'],
  ),
  drug(
    'bisoprolol',
    ['bisoprolol', 'beta blockers', 'rapid heart rate', 'slow pulse'],
    ['比索洛尔', 'β受体阻滞剂', '心率过快', '心动过缓'],
  ),
  drug(
    'furosemide',
    ['furosemide', 'loop diuretics', 'fluid overload', 'low potassium'],
    ['呋塞米', '袢利尿剂', '体液过多', '低钾血症'],
  ),
  drug(
    'spironolactone',
    ['spironolactone', 'aldosterone antagonists', 'resistant hypertension', 'high potassium'],
    ['螺内酯', '醛固酮拮抗剂', '难治性高血压', '高钾血症'],
  ),
  drug(
    'atorvastatin',
    ['atorvastatin', 'statins', 'high cholesterol', 'muscle pain'],
    ['阿托伐他汀', '他汀类', '高胆固醇血症', '肌痛'],
  ),
  drug(
    'salbutamol',
    ['salbutamol', 'beta agonists', 'relief of wheeze', 'hand tremor'],
    ['沙丁胺醇', 'β受体激动剂', '缓解喘息', '手抖'],
  ),
  drug(
    'prednisolone',
    ['prednisolone', 'corticosteroids', 'severe inflammation', 'bone loss'],
    ['泼尼松龙', '糖皮质激素', '严重炎症', '骨量丢失'],
  ),
  drug(
    'omeprazole',
    ['omeprazole', 'proton pump inhibitors', 'acid reflux', 'low magnesium'],
    ['奥美拉唑', '质子泵抑制剂', '胃酸反流', '低镁血症'],
  ),
  drug(
    'amoxicillin',
    ['amoxicillin', 'penicillins', 'bacterial chest infection', 'allergic rash'],
    ['阿莫西林', '青霉素类', '细菌性肺部感染', '过敏性皮疹'],
  ),
  drug(
    'gentamicin',
    ['gentamicin', 'aminoglycosides', 'severe gram-negative infection', 'hearing damage'],
    ['庆大霉素', '氨基糖苷类', '严重革兰阴性菌感染', '听力损害'],
  ),
  drug(
    'vancomycin',
    ['vancomycin', 'glycopeptides', 'resistant staphylococcal infection', 'kidney injury'],
    ['万古霉素', '糖肽类', '耐药葡萄球菌感染', '肾损伤'],
  ),
  drug(
    'isoniazid',
    ['isoniazid', 'antituberculous drugs', 'pulmonary tuberculosis', 'nerve damage'],
    ['异烟肼', '抗结核药', '肺结核', '周围神经损害'],
  ),
  drug(
    'morphine',
    ['morphine', 'opioids', 'severe pain', 'slow breathing'],
    ['吗啡', '阿片类', '剧烈疼痛', '呼吸抑制'],
  ),
  drug(
    'paracetamol',
    ['paracetamol', 'simple painkillers', 'mild pain and fever', 'liver damage'],
    ['对乙酰氨基酚', '解热镇痛药', '轻度疼痛和发热', '肝损伤'],
  ),
  drug(
    'lithium',
    ['lithium', 'mood stabilizers', 'bipolar disorder', 'thyroid failure'],
    ['碳酸锂', '心境稳定剂', '双相情感障碍', '甲状腺功能减退'],
  ),
  drug(
    'allopurinol',
    ['allopurinol', 'xanthine oxidase inhibitors', 'prevention of gout', 'severe skin reaction'],
    ['别嘌醇', '黄嘌呤氧化酶抑制剂', '预防痛风', '严重皮肤反应'],
  ),
  drug(
    'levothyroxine',
    ['levothyroxine', 'thyroid hormones', 'hypothyroidism', 'palpitations'],
    ['左甲状腺素', '甲状腺激素', '甲状腺功能减退', '心悸'],
  ),
];
